"""`mvader export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.cli._options import Quiet
from mvader_jax.errors import UserError


def export(
    bundle: Annotated[str, typer.Argument(help="name of an embedded bundle, a directory, or a LoRA file")],
    out: Annotated[Path, typer.Argument(help="directory to write; of a LoRA the file")],
    to: Annotated[
        str, typer.Option(help="diffusers, compvis or magma; of a LoRA peft, diffusers, kohya or mvader")
    ],
    dtype: Annotated[
        str, typer.Option(help="of the weights written: keep, float32, float16 or bfloat16")
    ] = "keep",
    fast: Annotated[
        bool, typer.Option("--fast", help="the UNet that was distilled to few steps, in the other's place")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="of a LoRA: the bundle it is of [default: Stable Diffusion 1.x]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export at OUT")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a bundle's weights as PyTorch programs read them.

    \b
    Examples:
      mvader export bundles/sd14 exported --to diffusers --dtype float16
      mvader export style.safetensors for-webui.safetensors --to kohya
    """
    from mvader_jax.cli._progress import bar
    from mvader_jax.convert.export import export as run
    from mvader_jax.convert.lora.merge import export_lora, is_file

    if is_file(bundle):
        if dtype != "keep" or fast:
            raise UserError("--dtype and --fast are of bundles; a LoRA file is written as it is")
        found, to = export_lora(bundle, out, to, base, overwrite=overwrite)
        print(f"wrote {out}, in the format {to}; {bundle} is {found}'s")
        return
    if base is not None:
        raise UserError("--base belongs to a LoRA file; a bundle says itself what it is")
    with bar("exporting", "B", quiet=quiet) as progress:
        done = run(bundle, out, to, dtype=dtype, fast=fast, overwrite=overwrite, progress=progress.update)
    print(f"wrote {', '.join(done.components)} to {out}")
    for note in done.notes:
        print(note)
