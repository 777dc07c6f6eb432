"""`mvader sample`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.bounds import NON_NEGATIVE, POSITIVE, ComputeDtype, FrozenDtype, between
from mvader_jax.cli import _given
from mvader_jax.cli._loading import Place, read_parts
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
    Lora,
    Quiet,
    Reuse,
    Seeds,
    Site,
    read_balance,
    sampling_of,
)
from mvader_jax.cli._progress import status
from mvader_jax.cli._prompts import sample_file
from mvader_jax.errors import UserError
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import STRENGTH, SamplingSettings, image_count
from mvader_jax.settings import convert

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import Element
    from mvader_jax.sampling.attention import Attention
    from mvader_jax.sampling.pictures import Pictures
    from mvader_jax.sampling.pipeline import Pipeline


def sample(
    context: typer.Context,
    parts: Annotated[
        list[str] | None, typer.Argument(help="texts and image files, in order; a weight is a suffix @0.3")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="a part of the negative prompt; may be repeated")
    ] = None,
    span: Annotated[
        list[str] | None,
        typer.Option(
            help="weight of words of a text, as in 1:red@2 (n1:red@2: of --negative); may be repeated"
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="weight of a picture's part, a painted mask or a box: 2:mask.png@2 or 2:0,0,0.5,1@2; may be repeated"
        ),
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
    like: Annotated[
        Path | None,
        typer.Option(
            help="a PNG that mvader drew: its prompt and settings, where no other flag says otherwise"
        ),
    ] = None,
    seed: Seeds = str(SEED),
    first: Annotated[
        int, NON_NEGATIVE, typer.Option(help="number of the first picture of each seed: 2 leaves out 0 and 1")
    ] = 0,
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
    attention_maps: Annotated[
        bool,
        typer.Option(
            "--attention-maps", help="a sheet too of where each part was looked at, and the share that it got"
        ),
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="a file of prompts, one JSON object per line; see docs/sampling.md")
    ] = None,
    batch: Annotated[
        int | None, POSITIVE, typer.Option(help="with --prompts: pictures drawn together [default: 8]")
    ] = None,
    mesh: DrawMesh = "",
    bundle: BundleName = "tiny",
    fast: Fast = False,
    lora: Lora = None,
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
      mvader sample --like outputs/00001.png --guidance-scale 5
    """
    convert(ComputeDtype, dtype, "--dtype")
    convert(FrozenDtype | None, frozen_dtype, "--frozen-dtype")
    place = Place(bundle, dtype, frozen_dtype, mesh, out, quiet, raw, fast, tuple(lora or ()))
    what = _Asked(parts or [], negative or [], span or [], region or [], task, {}, first, attention_maps)
    if like is not None:
        _sample_like(like, context, what, place)
        return 0
    if attention_maps and (task or prompts):
        raise UserError("--attention-maps belongs to a prompt; leave out --task and --prompts")
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
    given = {"strength": strength, "fraction": fraction}
    task_options = {name: value for name, value in given.items() if value is not None}
    if prompts is not None:
        if parts or negative or span or region or task or task_options or first:
            raise UserError(
                "--prompts takes everything from its file; leave out the parts, --negative, --span, --region, --task, "
                "--strength, --fraction and --first"
            )
        return sample_file(prompts, settings, count or 1, 8 if batch is None else batch, place)
    if not parts:
        raise UserError("Missing prompt: give texts and image files, or a file of prompts with --prompts")
    if task is None and task_options:
        raise UserError(f"--{next(iter(task_options))} belongs to --task img2img or --task interpolation")
    if batch is not None:
        raise UserError("--batch belongs to --prompts; --num-images pictures are drawn together without it")
    what = dataclasses.replace(what, options=task_options)
    several = isinstance(settings.seed, tuple)
    _sample_parts(what, settings, count or (1 if several else 4), place)
    return 0


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A prompt as the command line has it, and the task it is for."""

    parts: list[str]
    negative: list[str]
    span: list[str]
    region: list[str]
    task: str | None
    options: dict[str, float]
    first: int
    attention_maps: bool

    def recorded(self) -> dict[str, Any]:
        task = {"task": self.task, **self.options} if self.task else {}
        within = {name: given for name in ("span", "region") if (given := getattr(self, name))}
        return {"prompt": self.parts, "negative": self.negative, **within, **task}

    def elements(self) -> tuple[tuple[Element, ...], tuple[Element, ...]]:
        """Those of the prompt and of the negative one, their files read."""
        from mvader_jax.prompt.parse import read_part, weigh_within

        negative = [read_part(part) for part in self.negative]
        return weigh_within(read_parts(self.parts), negative, self.span, self.region)


def _sample_parts(asked: _Asked, settings: SamplingSettings, count: int, place: Place) -> None:
    from mvader_jax.sampling.tasks import check_task, run_task

    if asked.task is not None and "strength" in check_task(asked.task, asked.options).options:
        asked.options.setdefault("strength", STRENGTH)
    elements, negative = asked.elements()

    def draw(pipe: Pipeline) -> Pictures | Attention:
        run: Callable[..., Pictures | Attention] = (
            pipe if asked.task is None else functools.partial(run_task, asked.task, pipe)
        )
        if asked.attention_maps:
            run = pipe.attend
        given = {
            "settings": settings,
            "negative": negative or None,
            "first": asked.first,
            "num_images": count,
        }
        return run(elements, **given, **asked.options)

    recorded = {**asked.recorded(), **settings.recorded()}
    _draw_and_write(draw, (settings.steps, len(settings.numbered(count))), recorded, place)


def _sample_like(like: Path, context: typer.Context, asked: _Asked, place: Place) -> None:
    """A picture drawn again, or with what the flags change of it."""
    from mvader_jax.cli._like import read_like
    from mvader_jax.prompt.elements import Prompt

    flags = dict(context.params)
    drawing = read_like(like, flags, _given.given(context))
    for name, elements in zip(("prompt", "negative"), asked.elements(), strict=True):
        if elements:
            old = getattr(drawing, name)
            new = Prompt(elements) if old is None else dataclasses.replace(old, elements=elements)
            changed: dict[str, Any] = {name: new}
            drawing = dataclasses.replace(drawing, **changed)
    place = dataclasses.replace(place, **drawing.loaded)
    count = image_count(flags["num_images"] or 1)
    sizes = drawing.settings.steps, len(drawing.settings.numbered(count))
    looked = asked.attention_maps
    if looked and drawing.init_images:
        raise UserError(f"--attention-maps is of pictures that are drawn from noise; {str(like)!r} was not")

    def draw(pipe: Pipeline) -> Pictures | Attention:
        return drawing.attend(pipe, num_images=count) if looked else drawing.draw(pipe, num_images=count)

    _draw_and_write(draw, sizes, {}, place)


def _draw_and_write(
    draw: Callable[[Pipeline], Pictures | Attention],
    sizes: tuple[int, int],
    recorded: dict[str, Any],
    place: Place,
) -> None:
    """Draws, writes, and prints where. sizes: steps and pictures, to be told; recorded: kept beside what each says."""
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.attention import Attention
    from mvader_jax.sampling.output import check_results, write_pictures
    from mvader_jax.sampling.pictures import NotFiniteError

    check_results(place.out)
    failure: UserError | None = None
    sheet = None
    with status(f"loading {place.bundle}", place.quiet) as say:
        pipe = place.load()
        steps, total = sizes
        say(f"drawing {total} picture{'s' * (total > 1)} in {steps} steps (the first time compiles)")
        try:
            seen = draw(pipe)
            if isinstance(seen, Attention):
                sheet = seen.sheet()
            images = dict(enumerate(seen.pictures if isinstance(seen, Attention) else seen))
        except NotFiniteError as error:
            images, failure = error.pictures, error
    recorded |= {"bundle": place.bundle, "dtype": place.dtype}
    if place.frozen_dtype is not None:
        recorded["frozen_dtype"] = place.frozen_dtype
    recorded |= pipe.recorded_lora
    if images and first_process():
        for path in write_pictures(place.out, images, recorded, sheet):
            print(path)
    if failure is not None:
        raise failure
