"""`mvader score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.bounds import NON_NEGATIVE, POSITIVE, Seed
from mvader_jax.cli._given import listed, refuse
from mvader_jax.cli._options import DrawMesh, Quiet
from mvader_jax.cli._progress import bars, tell


def score(
    context: typer.Context,
    pictures: Annotated[Path, typer.Argument(help="folder of pictures")],
    metrics: Annotated[str, typer.Option(help="of fid,kid,cmmd,clip,clip-image")] = "fid",
    reference: Annotated[
        Path | None,
        typer.Option(help="folder of pictures to compare with, or FID's statistics of one, STATS.npz"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="file of prompts that the pictures were drawn of [default: what mvader sample wrote beside them]"
        ),
    ] = None,
    inception: Annotated[
        str | None, typer.Option(help="bundle of FID's Inception, for fid and kid; see docs/scores.md")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="bundle of a CLIP, for the others")] = None,
    resize: Annotated[
        str, typer.Option(help="to Inception's 299 pixels as in pytorch-fid, tensorflow or clean-fid")
    ] = "pytorch-fid",
    batch: Annotated[int, POSITIVE, typer.Option(help="pictures looked at together")] = 50,
    bootstrap: Annotated[int, NON_NEGATIVE, typer.Option(help="resamplings for intervals, 0: none")] = 0,
    seed: Annotated[Seed, typer.Option(help="of resamplings, and of kid's subsets")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="folder where features stay: the same command goes on from there")
    ] = None,
    save_stats: Annotated[
        Path | None, typer.Option(help="also write the pictures' own statistics, as pytorch-fid reads them")
    ] = None,
    mesh: DrawMesh = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a folder of pictures in the units that papers report.

    \b
    Examples:
      mvader score pictures --reference real --inception bundles/inception
      mvader score drawn --metrics clip,clip-image --clip bundles/clip --json
    """
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.scores.score import Scoring, as_markdown
    from mvader_jax.scores.score import score as run

    names = listed("--metrics", metrics or None) or ()
    settings = Scoring(
        metrics=names,
        inception=inception,
        clip=clip,
        reference=reference,
        prompts=prompts,
        resize=resize,
        batch=batch,
        bootstrap=bootstrap,
        seed=seed,
        keep=keep,
        save_stats=save_stats,
    )
    refuse(context, f"--metrics {metrics}", settings.heeds | {"pictures", "mesh", "as_json", "quiet"})
    where = open_mesh(mesh)
    with bars(quiet, "pictures") as progress:
        result = run(pictures, settings, mesh=where, progress=progress)
    if not first_process():
        return
    if not quiet:
        for note in result["notes"]:
            tell(f"mvader: {note}")
    print(json.dumps(result, indent=1) if as_json else as_markdown(result))
