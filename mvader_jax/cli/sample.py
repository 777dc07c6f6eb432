"""`mvader sample`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.errors import UserError

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import Element
    from mvader_jax.sampling.batch.run import Progress


def sample(
    parts: Annotated[
        list[str] | None, typer.Argument(help="texts and image files, in order; a weight is a suffix @0.3")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="a part of the negative prompt; may be repeated")
    ] = None,
    negative_strength: Annotated[
        float, typer.Option(help="of the negative prompt: 0 as without it, 1 in place of the empty prompt")
    ] = 1.0,
    task: Annotated[
        str | None,
        typer.Option(help="variation, style, element, composition, img2img or interpolation"),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(help="pictures to draw [default: 4; with --prompts: 1 a line]")
    ] = None,
    seed: Annotated[int, typer.Option(help="same seed, same pictures")] = 0,
    steps: Annotated[int, typer.Option(help="sampling steps, 1 to 1000")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="classifier-free guidance")] = 8.0,
    sampler: Annotated[str, typer.Option(help="plms is the paper's; mvader samplers lists all")] = "plms",
    site: Annotated[str, typer.Option(help="where weights act: decoder, cross_attention or both")] = "both",
    balance: Annotated[bool, typer.Option("--balance", help="weights are an element's total share")] = False,
    strength: Annotated[
        float | None, typer.Option(help="noise of img2img and interpolation, 0 to 1 [default: 0.6]")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="the second image's part in an interpolation [default: 0.5]")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="a file of prompts, a JSON object a line; see docs/sampling.md")
    ] = None,
    batch: Annotated[int, typer.Option(help="with --prompts: pictures drawn together")] = 8,
    mesh: Annotated[str, typer.Option(help="devices to draw on, as in data=4,fsdp=2 [default: one]")] = "",
    bundle: Annotated[str, typer.Option(help="name of an embedded bundle, or a directory")] = "tiny",
    out: Annotated[Path, typer.Option(help="directory for the pictures")] = Path("outputs"),
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress shown")] = False,
) -> int:
    """Draw pictures of a prompt of texts and images, or of every prompt of a file."""
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"unknown dtype {dtype!r}; accepted: float32, bfloat16")
    shared: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "site": site,
        "balance": balance,
        "negative_strength": negative_strength,
    }
    if not 0.0 <= negative_strength < float("inf"):
        raise UserError(f"the negative prompt's strength is {negative_strength}; accepted are 0 and above")
    check_numbers(num_images, seed=seed, steps=steps, guidance_scale=guidance_scale, site=site)
    if prompts is not None:
        if parts or negative or task or strength is not None or fraction is not None:
            raise UserError(
                "--prompts takes everything from its file; leave out the parts, --negative, --task, --strength "
                "and --fraction"
            )
        return _sample_file(
            prompts, {**shared, "num_images": num_images or 1}, batch, mesh, bundle, out, dtype, quiet
        )
    if not parts:
        raise UserError("Missing prompt: give texts and image files, or a file of prompts with --prompts")
    given = {"strength": strength, "fraction": fraction}
    task_options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if task is None and task_options:
        raise UserError(f"--{next(iter(task_options))} belongs to --task img2img or --task interpolation")

    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.output import check_writable, write_pictures
    from mvader_jax.sampling.pipeline import Pipeline
    from mvader_jax.sampling.tasks import run_task

    elements, against = read_parts(parts), read_parts(negative or [])
    check_writable(out)
    count = 4 if num_images is None else num_images
    with status(f"loading {bundle}", quiet) as say:
        pipe = Pipeline.load(bundle, dtype=dtype, mesh=open_mesh(mesh))
        say(f"drawing {count} picture{'s' * (count > 1)} in {steps} steps (the first time compiles)")
        options: dict[str, Any] = {"negative": against or None, "num_images": count, **shared}
        run = pipe if task is None else functools.partial(run_task, task, pipe)
        images = run(elements, **options, **task_options)
    settings = {
        "prompt": parts,
        "negative": negative or [],
        **({"task": task, **task_options} if task else {}),
        **shared,
        "bundle": bundle,
        "dtype": dtype,
    }
    if first_process():
        for path in write_pictures(out, images, settings):
            print(path)
    return 0


def _sample_file(
    prompts: Path,
    defaults: dict[str, Any],
    batch: int,
    mesh: str,
    bundle: str,
    out: Path,
    dtype: str,
    quiet: bool,
) -> int:
    """Exit codes: 0, all are there; 1, some lines are bad; 75 after SIGTERM and 130 after Ctrl-C."""
    import signal

    if batch < 1:
        raise UserError(f"batch is {batch}; at least 1 is needed")
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.batch.requests import Settings, read_requests
    from mvader_jax.sampling.batch.run import sample_all
    from mvader_jax.sampling.output import check_writable
    from mvader_jax.sampling.pipeline import Pipeline

    requests, problems = read_requests(prompts, Settings(**defaults))
    check_writable(out)
    with status(f"loading {bundle}", quiet):
        pipe = Pipeline.load(bundle, dtype=dtype, mesh=open_mesh(mesh))
    with _bar(quiet or not first_process()) as progress:
        report = sample_all(pipe, requests, problems, out, size=batch, bundle=bundle, progress=progress)
    total = sum(request.num_images for request in requests)
    if first_process():
        print(f"{report.drawn} drawn, {report.present} were there, in {out}", file=sys.stderr)
    if report.stopped is not None and report.drawn + report.present < total:
        if first_process():
            print("stopped; the same command goes on from here", file=sys.stderr)
        return 130 if report.stopped == signal.SIGINT else 75
    return 1 if report.problems else 0


def check_numbers(num_images: int | None, *, seed: int, steps: int, guidance_scale: float, site: str) -> None:
    """Everything that needs no bundle, so that a mistake is told at once. Raises UserError."""
    import math

    from mvader_jax.prompt.elements import SITES

    if num_images is not None and num_images < 1:
        raise UserError(f"num_images is {num_images}; at least 1 is needed")
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}; accepted are 0 to {2**32 - 1}")
    if not 1 <= steps <= 1000:
        raise UserError(f"steps is {steps}; accepted are 1 to 1000")
    if not math.isfinite(guidance_scale):
        raise UserError(f"the guidance scale is {guidance_scale}; it must be a finite number")
    if site not in SITES:
        raise UserError(f"unknown site {site!r}; accepted: {', '.join(SITES)}")


def read_parts(parts: list[str]) -> tuple[Element, ...]:
    """The elements, their images read: a file that is none is refused before a model is loaded."""
    import dataclasses

    from mvader_jax.images.read import load_image
    from mvader_jax.prompt.elements import Image
    from mvader_jax.prompt.parse import parse_part

    elements = [parse_part(part) for part in parts]
    return tuple(
        dataclasses.replace(one, image=load_image(one.image)) if isinstance(one, Image) else one
        for one in elements
    )


@contextmanager
def status(message: str, quiet: bool) -> Iterator[Any]:
    """A line on a terminal that tells what is being done, and for how long."""
    import rich.console
    import rich.progress

    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True, quiet=quiet)
    hidden = not console.is_terminal
    with rich.progress.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(message)

        def say(text: str) -> None:
            bar.update(task, description=text)

        yield say


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """A bar with pictures a second and the time left; a line every half minute where there is no terminal."""
    import time

    import rich.console
    import rich.progress

    from mvader_jax.sampling.batch.run import Progress, rate

    console = rich.console.Console(stderr=True, quiet=quiet)
    columns = (
        rich.progress.TextColumn("drawing"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    # A batch may take minutes; the time left is told from those of the last ten.
    with rich.progress.Progress(*columns, console=console, disable=hidden, speed_estimate_period=600) as bar:
        task = bar.add_task("", total=None, speed="compiling")

        class Shown(Progress):
            def start(self, total: int, present: int) -> None:
                self.total, self.there, self.first = total, present, True
                self.speed, self.told = rate(), time.monotonic()
                bar.update(task, total=total, completed=present)
                if present:
                    self.say(f"{present} of {total} are there already")

            def advance(self, count: int) -> None:
                self.there += count
                speed = self.speed(count)
                bar.update(task, completed=self.there, speed=f"{speed:.2f} images/s")
                now = time.monotonic()
                if not console.is_terminal and (self.first or now - self.told >= 30):
                    left = (self.total - self.there) / speed if speed else 0.0
                    self.say(f"{self.there} of {self.total}, {speed:.2f} images/s, {left:.0f} s left")
                    self.told = now
                self.first = False

            def problem(self, problem: Any) -> None:
                console.print(f"mvader: {problem}", highlight=False, markup=False)

            def say(self, message: str) -> None:
                console.print(message, highlight=False, markup=False)

        yield Shown()
