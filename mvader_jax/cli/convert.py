"""`mvader convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.cli._options import Quiet
from mvader_jax.cli._progress import bar


def convert(
    source: Annotated[Path, typer.Argument(help="weights: a folder, a file, or hf:ORG/NAME[@REVISION]")],
    out: Annotated[Path, typer.Argument(help="directory of the bundle to write")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="the kind, instead of telling it by the content: stable-diffusion, gptj, gpt-neox, magma, "
            "sgpt-biases, clip-resnet, clip, clip-text, inception",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="of the weights written: keep, float32 or bfloat16")] = "keep",
    config: Annotated[
        Path | None, typer.Option(help="settings in place of the config.json beside the source")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="sgpt-biases: the GPT-J that was finetuned, a folder or a bundle")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of a vocabulary, or hf:ORG/NAME, for sources without one")
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="CompVis checkpoints: the moving average of the UNet")
    ] = False,
    variant: Annotated[str | None, typer.Option(help="which of several sets of weights, as fp16")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="read pickles that can run code")
    ] = False,
    allow_nan: Annotated[bool, typer.Option("--allow-nan", help="take numbers that are not finite")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the bundle at OUT")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn public PyTorch weights into a bundle.

    \b
    Examples:
      mvader convert hf:CompVis/stable-diffusion-v1-4 bundles/sd14
      mvader convert weights/gpt-j-6b bundles/gptj --dtype bfloat16
    """
    from mvader_jax.convert.convert import convert as run
    from mvader_jax.convert.files import fetch, fetch_vocabulary
    from mvader_jax.convert.kinds.base import Options
    from mvader_jax.convert.names import in_patterns
    from mvader_jax.convert.sources import open_source
    from mvader_jax.storage.atomic import check_place, local

    local(out)
    options = Options(config=config, ema=ema, variant=variant, trust_pickle=trust_pickle)
    if not overwrite:  # before anything is downloaded
        check_place(out, sources=[] if str(source).startswith("hf:") else [Path(source)])
    found = fetch(source, variant, quiet=quiet)
    opened = open_source(found.path, kind, options)
    print(f"{source} is {opened.kind.name}")
    with bar("converting", "B", quiet=quiet) as progress:
        report = run(
            opened,
            found.path,
            out,
            origin=found.origin,
            options=options,
            dtype=dtype,
            base=None if base is None else fetch(base, None, quiet=quiet).path,
            tokenizer=fetch_vocabulary(tokenizer, quiet=quiet),
            allow_nan=allow_nan,
            overwrite=overwrite,
            progress=progress.update,
        )
    for name, record in report.components.items():
        print(f"  {name}: {record['parameters']:,} parameters, {', '.join(record['dtypes'])}")
    for reason, names in report.skipped.items():
        print(f"left out ({reason}): {', '.join(in_patterns(names))}")
    for name in in_patterns(report.not_finite):
        print(f"not finite: {name}")
    for note in report.notes:
        print(note)
    print(f"wrote {out}")
