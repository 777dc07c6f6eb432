"""`mvader evaluate`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.cli._options import BundleName, DrawMesh, GuidanceScale, Quiet, Sampler, Seed, Steps
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from mvader_jax.cli._progress import Bar


def evaluate(
    bundle: BundleName = "tiny",
    parts: Annotated[
        str, typer.Option(help="of reader,reconstruction,text,variation,change,style,pairs,order,three")
    ] = "reader,reconstruction,text,variation,change",
    count: Annotated[int, typer.Option(help="held-out scenes")] = 500,
    steps: Steps = SamplingSettings.steps,
    guidance_scale: GuidanceScale = SamplingSettings.guidance_scale,
    sampler: Sampler = SamplingSettings.sampler,
    thetas: Annotated[
        str | None,
        typer.Option(help="curves: weights of the element that has them [default: 1,.5,.2,.1,.05,.02,0]"),
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="curves: where they act [default: decoder,cross_attention,both]")
    ] = None,
    image_first: Annotated[
        bool, typer.Option("--image-first", help="change, style, three: the text last")
    ] = False,
    balance: Annotated[bool, typer.Option("--balance", help="curves: weights are total shares")] = False,
    phrase: Annotated[
        str | None, typer.Option(help="change: the text beside the image [default: a {color} shape]")
    ] = None,
    seed: Seed = SEED,
    batch: Annotated[int, typer.Option(help="pictures drawn at a time")] = 50,
    mesh: DrawMesh = "",
    out: Annotated[Path | None, typer.Option(help="also write the numbers as JSON")] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a bundle trained on scenes by its pictures. Held-out scenes, told and shown, are read back by analysis.

    \b
    Examples:
      mvader evaluate --parts text,variation --count 100
      mvader evaluate --parts change --thetas 1,.2,.1 --out change.json
    """
    from mvader_jax.cli._progress import bar
    from mvader_jax.cli.sample import load_pipeline
    from mvader_jax.paper.curves import Curves, check_options
    from mvader_jax.paper.evaluate import Evaluation, as_markdown, check, check_place, save
    from mvader_jax.paper.evaluate import evaluate as run
    from mvader_jax.prompt.checks import check_weight

    chosen = {
        "thetas": thetas and tuple(check_weight(theta, "the curves' image") for theta in thetas.split(",")),
        "sites": sites and tuple(site.strip() for site in sites.split(",")),
        "order": "image first" if image_first else None,
        "balance": balance or None,
        "phrase": phrase,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    named = [part.strip() for part in parts.split(",")]
    check(named)
    check_options(given, named)
    curves = Curves(**given)
    sampling = SamplingSettings(steps=steps, guidance_scale=guidance_scale, sampler=sampler, seed=seed)
    settings = Evaluation(count, batch, sampling)
    if out is not None:
        check_place(out)
    pipe = load_pipeline(bundle, mesh=mesh)
    with contextlib.ExitStack() as shown:
        bars: dict[str, Bar] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                shown.close()
                bars[what] = shown.enter_context(bar(what, "images", quiet=quiet))
                bars[what].begin(total)
            bars[what].update(done)

        result = run(pipe, settings, named, curves=curves, progress=progress)
    print(as_markdown(result))
    if out is not None:
        save(result, out)
