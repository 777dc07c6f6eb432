"""`mvader export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.cli._options import Quiet


def export(
    bundle: Annotated[str, typer.Argument(help="name of an embedded bundle, or a directory")],
    out: Annotated[Path, typer.Argument(help="directory to write")],
    to: Annotated[str, typer.Option(help="diffusers, compvis or magma")],
    dtype: Annotated[
        str, typer.Option(help="of the weights written: keep, float32, float16 or bfloat16")
    ] = "keep",
    fast: Annotated[
        bool, typer.Option("--fast", help="the UNet that was distilled to few steps, in the other's place")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export at OUT")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a bundle's weights as PyTorch programs read them.

    \b
    Examples:
      mvader export bundles/sd14 exported --to diffusers --dtype float16
    """
    from mvader_jax.cli._progress import bar
    from mvader_jax.convert.export import export as run

    with bar("exporting", "B", quiet=quiet) as progress:
        done = run(bundle, out, to, dtype=dtype, fast=fast, overwrite=overwrite, progress=progress.update)
    print(f"wrote {', '.join(done.components)} to {out}")
    for note in done.notes:
        print(note)
