"""`mvader sample`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.bounds import POSITIVE, ComputeDtype, FrozenDtype, between
from mvader_jax.cli._options import (
    BalanceAttention,
    BundleName,
    DrawMesh,
    Fast,
    FastSampler,
    FastSteps,
    GuidanceInterval,
    GuidanceScale,
    KeptIn,
    LongPrompts,
    Quiet,
    Reuse,
    Seeds,
    Site,
    read_balance,
    sampling_of,
)
from mvader_jax.cli._progress import bar, status, tell
from mvader_jax.errors import UserError
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import STRENGTH, SamplingSettings, image_count
from mvader_jax.settings import convert

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import Element
    from mvader_jax.sampling.batch.run import Progress
    from mvader_jax.sampling.pipeline import Pipeline


def sample(
    parts: Annotated[
        list[str] | None, typer.Argument(help="texts and image files, in order; a weight is a suffix @0.3")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="a part of the negative prompt; may be repeated")
    ] = None,
    negative_strength: Annotated[
        float, typer.Option(help="of the negative prompt: 0 as without it, 1 in place of the empty prompt")
    ] = SamplingSettings.negative_strength,
    task: Annotated[
        str | None,
        typer.Option(help="variation, style, element, composition, img2img or interpolation"),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(help="pictures of each seed [default: 4; of several seeds, and with --prompts: 1]"),
    ] = None,
    seed: Seeds = str(SEED),
    steps: FastSteps = None,
    guidance_scale: GuidanceScale = SamplingSettings.guidance_scale,
    sampler: FastSampler = None,
    site: Site = "both",
    balance: Annotated[bool, typer.Option("--balance", help="weights are an element's total share")] = False,
    balance_attention: BalanceAttention = False,
    long_prompts: LongPrompts = None,
    height: Annotated[int | None, typer.Option(help="pixels [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="pixels [default: the model's]")] = None,
    eta: Annotated[float, typer.Option(help="fresh noise of ddim, 0 to 1")] = SamplingSettings.eta,
    guidance_interval: GuidanceInterval = None,
    reuse: Reuse = SamplingSettings.reuse,
    strength: Annotated[
        float | None,
        between(0, 1),
        typer.Option(help="noise of img2img and interpolation, 0 to 1 [default: 0.6]"),
    ] = None,
    fraction: Annotated[
        float | None,
        between(0, 1),
        typer.Option(help="the second image's part in an interpolation [default: 0.5]"),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="a file of prompts, one JSON object per line; see docs/sampling.md")
    ] = None,
    batch: Annotated[
        int | None, POSITIVE, typer.Option(help="with --prompts: pictures drawn together [default: 8]")
    ] = None,
    mesh: DrawMesh = "",
    bundle: BundleName = "tiny",
    fast: Fast = False,
    lora: Annotated[
        list[str] | None, typer.Option(help="a LoRA file, its strength a suffix @0.8; may be repeated")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="of a training run: the parameters themselves, not their average")
    ] = False,
    out: Annotated[Path, typer.Option(help="directory for the pictures")] = Path("outputs"),
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
    frozen_dtype: KeptIn = None,
    quiet: Quiet = False,
) -> int:
    """Draw pictures of a prompt, or of every prompt of a file. A prompt's parts are texts and image files, in order.

    \b
    Examples:
      mvader sample "a large solid red circle on the left"
      mvader sample "a green shape" circle.png@0.1 --num-images 4 --seed 1
      mvader sample --task img2img photo.png "in blue" --strength 0.6
      mvader sample --prompts prompts.jsonl --out pictures --batch 32
      mvader sample "a red circle" --bundle runs/tiny/diffusion@6000
      mvader sample --fast "a red circle" --bundle runs/tiny/distill/bundle
      mvader sample "a lighthouse" --bundle bundles/sd14 --lora style.safetensors@0.8
    """
    convert(ComputeDtype, dtype, "--dtype")
    convert(FrozenDtype | None, frozen_dtype, "--frozen-dtype")
    settings = sampling_of(
        fast,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        seed=seed,
        site=site,
        balance=read_balance(balance, balance_attention),
        long_prompts=long_prompts,
        negative_strength=negative_strength,
        height=height,
        width=width,
        eta=eta,
        guidance_interval=guidance_interval,
        reuse=reuse,
    )
    count = None if num_images is None else image_count(num_images)
    place = Place(bundle, dtype, frozen_dtype, mesh, out, quiet, raw, fast, tuple(lora or ()))
    given = {"strength": strength, "fraction": fraction}
    task_options = {name: value for name, value in given.items() if value is not None}
    if prompts is not None:
        if parts or negative or task or task_options:
            raise UserError(
                "--prompts takes everything from its file; leave out the parts, --negative, --task, --strength "
                "and --fraction"
            )
        return sample_file(prompts, settings, count or 1, 8 if batch is None else batch, place)
    if not parts:
        raise UserError("Missing prompt: give texts and image files, or a file of prompts with --prompts")
    if task is None and task_options:
        raise UserError(f"--{next(iter(task_options))} belongs to --task img2img or --task interpolation")
    if batch is not None:
        raise UserError("--batch belongs to --prompts; --num-images pictures are drawn together without it")
    what = _Asked(parts, negative or [], task, task_options)
    several = isinstance(settings.seed, tuple)
    _sample_parts(what, settings, count or (1 if several else 4), place)
    return 0


@dataclasses.dataclass(frozen=True)
class Place:
    """What draws, and where to."""

    bundle: str
    dtype: str
    frozen_dtype: str | None
    mesh: str
    out: Path
    quiet: bool
    raw: bool
    fast: bool
    lora: tuple[str, ...] = ()

    def load(self) -> Pipeline:
        return load_pipeline(
            self.bundle,
            dtype=self.dtype,
            frozen_dtype=self.frozen_dtype,
            mesh=self.mesh,
            raw=self.raw,
            fast=self.fast,
            lora=self.lora,
        )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A prompt as the command line has it, and the task it is for."""

    parts: list[str]
    negative: list[str]
    task: str | None
    options: dict[str, float]

    def recorded(self) -> dict[str, Any]:
        task = {"task": self.task, **self.options} if self.task else {}
        return {"prompt": self.parts, "negative": self.negative, **task}


def _sample_parts(asked: _Asked, settings: SamplingSettings, count: int, place: Place) -> None:
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.prompt.parse import read_part
    from mvader_jax.sampling.output import check_results, write_pictures
    from mvader_jax.sampling.pictures import NotFiniteError
    from mvader_jax.sampling.tasks import check_task, run_task

    if asked.task is not None and "strength" in check_task(asked.task, asked.options).options:
        asked.options.setdefault("strength", STRENGTH)
    elements, negative = read_parts(asked.parts), tuple(map(read_part, asked.negative))
    check_results(place.out)
    failure: UserError | None = None
    with status(f"loading {place.bundle}", place.quiet) as say:
        pipe = place.load()
        total = len(settings.numbered(count))
        say(f"drawing {total} picture{'s' * (total > 1)} in {settings.steps} steps (the first time compiles)")
        run: Callable[..., Any] = (
            pipe if asked.task is None else functools.partial(run_task, asked.task, pipe)
        )
        try:
            drawn = run(
                elements, settings=settings, negative=negative or None, num_images=count, **asked.options
            )
            images = dict(enumerate(drawn))
        except NotFiniteError as error:
            images, failure = error.pictures, error
    recorded = {**asked.recorded(), **settings.recorded(), "bundle": place.bundle, "dtype": place.dtype}
    if place.frozen_dtype is not None:
        recorded["frozen_dtype"] = place.frozen_dtype
    recorded |= pipe.recorded_lora
    if images and first_process():
        for path in write_pictures(place.out, images, recorded):
            print(path)
    if failure is not None:
        raise failure


def sample_file(prompts: Path, settings: SamplingSettings, num_images: int, batch: int, place: Place) -> int:
    """Exit codes: 0, all are there; 1, some lines are bad; 75 after SIGTERM and 130 after Ctrl-C."""
    import signal

    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.batch.requests import read_requests
    from mvader_jax.sampling.batch.run import sample_all
    from mvader_jax.sampling.output import check_results

    requests, problems = read_requests(prompts, settings, num_images=num_images)
    check_results(place.out)
    with status(f"loading {place.bundle}", place.quiet):
        pipe = place.load()
    with _bar(place.quiet or not first_process()) as progress:
        report = sample_all(
            pipe, requests, problems, place.out, size=batch, bundle=place.bundle, progress=progress
        )
    total = sum(request.count for request in requests)
    if first_process():
        tell(f"{report.drawn} drawn, {report.present} were there, in {place.out}")
    if report.stopped is not None and report.drawn + report.present < total:
        if first_process():
            tell("stopped; the same command goes on from here")
        return 130 if report.stopped == signal.SIGINT else 75
    return 1 if report.problems else 0


def load_pipeline(
    bundle: str,
    *,
    dtype: str = "float32",
    frozen_dtype: str | None = None,
    mesh: str = "",
    raw: bool = False,
    fast: bool = False,
    lora: tuple[str, ...] = (),
) -> Pipeline:
    """A bundle, or a step of a training run, ready to draw on the mesh of a command's `--mesh`.

    Compiled programs are kept on disk. raw: of a run, the parameters themselves; fast: with the few-step UNet;
    lora: files that change it, as `Pipeline.use_lora` takes them.
    """
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.lora import Applied
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.storage.bundle_config import is_run
    from mvader_jax.storage.describe import FRESH, is_fresh

    if raw and not is_run(bundle):
        raise UserError("--raw belongs to RUN/STAGE[@STEP]; a bundle has one set of parameters")
    for file in lora:
        Applied.of(file)  # a wrong name is told before anything is loaded
    where = open_mesh(mesh)
    pipe = Pipeline.load(
        bundle, dtype=dtype, frozen_dtype=frozen_dtype, mesh=where, raw=raw, fast=fast, lora=lora, cache=True
    )
    if is_fresh(pipe.bundle.records) and first_process():
        tell(f"{bundle}: {FRESH}")
    return pipe


def read_parts(parts: list[str]) -> tuple[Element, ...]:
    """The elements, their images read: a file that is none is refused before a model is loaded.

    Words that look like a text without its quotation marks are told.
    """
    from mvader_jax.prompt.parse import loose_words, read_part

    if hint := loose_words(parts):
        tell(f"mvader: {hint}")
    return tuple(read_part(part) for part in parts)


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """Shows a batch's progress; problems are told even where nothing else is."""
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.batch.run import Progress

    with bar("drawing", "images", quiet=quiet) as shown:

        class Shown(Progress):
            def start(self, total: int, present: int) -> None:
                shown.begin(total, present)
                if present:
                    self.say(f"{present} of {total} are there already")

            def advance(self, count: int) -> None:
                shown.advance(count)

            def problem(self, problem: Any) -> None:
                if not quiet:
                    shown.say(f"mvader: {problem}")
                elif first_process():
                    tell(f"mvader: {problem}")

            def say(self, message: str) -> None:
                shown.say(message)

        yield Shown()
