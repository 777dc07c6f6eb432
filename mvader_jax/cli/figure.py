"""`mvader figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mvader_jax.cli._given import listed
from mvader_jax.cli._options import (
    BundleName,
    FastIfThere,
    GuidanceScale,
    Quiet,
    Seed,
    Site,
    WaitSampler,
    WaitSteps,
    chosen_fast,
    sampling_of,
)
from mvader_jax.sampling.seeds import SEED
from mvader_jax.sampling.settings import SamplingSettings


def figure(
    which: Annotated[str, typer.Argument(help="3, 4, 5, 6, 7, 9 of the paper, or weights")],
    more: Annotated[list[str] | None, typer.Argument(help="further inputs")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(help="texts and image files, as in --inputs 'in blue' photo.png@0.1 [default: scenes]"),
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="figure 5: the words for <color> [default: red,green,blue,yellow]")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="figures 6 and 7: noise of the image-to-image baseline [default: 0.6]"),
    ] = None,
    thetas: Annotated[
        str | None, typer.Option(help="weights: the thetas of both elements [default: 1,.3,.1,.03,0]")
    ] = None,
    seed: Seed = SEED,
    steps: WaitSteps = None,
    guidance_scale: GuidanceScale = SamplingSettings.guidance_scale,
    sampler: WaitSampler = None,
    site: Site = "both",
    bundle: BundleName = "tiny",
    fast: FastIfThere = None,
    out: Annotated[
        Path | None, typer.Option(help="the PNG to write  [default: outputs/figure-WHICH.png]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Lay out a figure of the paper, drawn by this model.

    \b
    Examples:
      mvader figure 3
      mvader figure 5 --inputs 'a <color> hat' photo.png@0.1 --values red,blue
      mvader figure weights "a red shape" photo.png --thetas 1,.3,0
    """
    from mvader_jax.cli._loading import load_pipeline, read_parts
    from mvader_jax.cli._progress import status
    from mvader_jax.errors import UserError
    from mvader_jax.images.png import save_png
    from mvader_jax.paper.figures import Options, check_figure, draw_figure
    from mvader_jax.prompt.checks import check_weight
    from mvader_jax.prompt.parse import parse_part
    from mvader_jax.sampling.output import check_replaceable, make_writable

    given = {
        "values": listed("--values", values),
        "strength": strength,
        "thetas": listed("--thetas", thetas, lambda one: check_weight(one, "the sweep")),
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    check_figure(which, chosen)
    few = chosen_fast(fast, bundle, steps, sampler)
    sampling = sampling_of(
        few, steps=steps, sampler=sampler, guidance_scale=guidance_scale, seed=seed, site=site
    )
    options = Options(sampling, **chosen)
    parts = [*(inputs or []), *(more or [])]
    elements = read_parts(parts)
    target = Path("outputs") / f"figure-{which}.png" if out is None else out
    if target.suffix.lower() != ".png":
        raise UserError(f"{str(target)!r} is no name of a PNG; a figure is written as NAME.png")
    check_replaceable(target, "figure", [getattr(parse_part(part), "image", None) for part in parts])
    with status(f"loading {bundle}", quiet) as say:
        pipe = load_pipeline(bundle, fast=few)
        sheet = draw_figure(which, pipe, elements, options, lambda what: say(f"figure {which}: {what}"))
    make_writable(target.parent)
    recorded = {**options.sampling.recorded(), "strength": options.strength}
    save_png(target, sheet, {"figure": which, "inputs": parts, "bundle": bundle, **recorded})
    print(target)
