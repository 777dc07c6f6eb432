"""`mvader bundle`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mvader_jax.bounds import Seed
from mvader_jax.cli._given import refuse
from mvader_jax.cli._options import Quiet
from mvader_jax.errors import UserError

_From = "the bundle it comes from"


def bundle(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="directory of the bundle to write, or to describe")],
    decoder: Annotated[Path | None, typer.Option(help=_From)] = None,
    biases: Annotated[Path | None, typer.Option(help=_From)] = None,
    adapters: Annotated[Path | None, typer.Option(help=_From)] = None,
    image_prefix: Annotated[Path | None, typer.Option(help=_From)] = None,
    image_encoder: Annotated[Path | None, typer.Option(help=_From)] = None,
    text_encoder: Annotated[Path | None, typer.Option(help=_From)] = None,
    unet: Annotated[Path | None, typer.Option(help=_From)] = None,
    unet_fast: Annotated[
        Path | None, typer.Option(help=f"the UNet of few steps: {_From}, whose unet may be one")
    ] = None,
    vae: Annotated[Path | None, typer.Option(help=_From)] = None,
    base: Annotated[
        str | None, typer.Option(help="a bundle that all components come from where no other is named")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="with --base: a component to leave out; may be repeated")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="a folder or bundle, in place of the decoder's own")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="RUN/STAGE[@STEP] of a training run, in place of components")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="with --checkpoint: the parameters themselves, not their average")
    ] = False,
    merge_lora: Annotated[
        list[str] | None,
        typer.Option(help="a LoRA file, or FILE@0.8, laid into the weights of --base; may be repeated"),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="s_magma or clip_text [default: s_magma with a decoder]")
    ] = None,
    seed: Annotated[Seed, typer.Option(help="of freshly initialised matrices")] = 0,
    describe: Annotated[
        bool, typer.Option("--describe", help="print what the bundle at OUT is: it may be hf:ORG/NAME")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="read the bundle at OUT whole and compare it with its hashes")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --describe: as JSON")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the bundle at OUT")] = False,
    quiet: Quiet = False,
) -> None:
    """Put components of bundles together into one, or describe one.

    \b
    Examples:
      mvader bundle tiny --describe
      mvader bundle bundles/mine --checkpoint runs/tiny/diffusion
      mvader bundle bundles/both --unet bundles/sd14 --decoder bundles/gptj
      mvader bundle bundles/styled --base bundles/sd14 --merge-lora style.safetensors
      mvader bundle bundles/quick --base tiny --unet-fast runs/tiny/distill/bundle
      mvader bundle bundles/plain --base tiny --without unet_fast
    """
    from mvader_jax.cli._progress import bar
    from mvader_jax.convert.compose import compose, with_base
    from mvader_jax.convert.lora.merge import merge_lora as run_merge
    from mvader_jax.storage.bundle import verify as check
    from mvader_jax.storage.bundle_config import find_bundle
    from mvader_jax.storage.describe import describe as describe_bundle
    from mvader_jax.train.snapshot import Snapshot, write_snapshot

    given = {
        "decoder": decoder,
        "biases": biases,
        "adapters": adapters,
        "image_prefix": image_prefix,
        "image_encoder": image_encoder,
        "text_encoder": text_encoder,
        "unet": unet,
        "unet_fast": unet_fast,
        "vae": vae,
    }
    parts = {name: path for name, path in given.items() if path is not None}
    if without and base is None:
        raise UserError("--without leaves out what --base brings; give both")
    if merge_lora and base is None:
        raise UserError("--merge-lora names LoRA files and --base the bundle they change; give both")
    look = "--describe" if describe else "--verify"
    way = "checkpoint" if checkpoint else "look" if describe or verify else "merge" if merge_lora else "put"
    what, takes = {
        "look": (
            f"{look}, which looks at the bundle at OUT",
            ("describe", "verify", *(["as_json"] * describe)),
        ),
        "checkpoint": ("--checkpoint, which brings all components", ("checkpoint", "raw", "overwrite")),
        "merge": ("--merge-lora, which takes all of --base", ("merge_lora", "base", "overwrite")),
        "put": (
            "components put together",
            (*given, "base", "tokenizer", "embedder", "seed", "overwrite", "without"),
        ),
    }[way]
    refuse(context, what, {*takes, "out", "quiet"})
    if base is not None and not (merge_lora or parts or without or tokenizer):
        raise UserError(
            "--base alone changes nothing; give --merge-lora, --without, or a component, or copy the folder"
        )
    compared = check(find_bundle(out)) if verify else {}
    if checkpoint is not None:
        write_snapshot(Snapshot.of(checkpoint, raw=raw), out, overwrite=overwrite)
        print(f"wrote {out}")
    elif merge_lora and base is not None:
        for note in run_merge(base, merge_lora, out, overwrite=overwrite):
            print(note)
        print(f"wrote {out}")
    elif not (describe or verify):
        with bar("copying", "B", quiet=quiet) as progress:
            left: tuple[str, ...] = ()
            if base is not None:
                own, kind, left = with_base(Path(base), parts, without or [])
                parts, embedder = own, embedder or kind
            notes = compose(
                out,
                parts,
                tokenizer=tokenizer,
                embedder=embedder,
                seed=seed,
                overwrite=overwrite,
                progress=progress.update,
            )
        for note in (*left, *notes):
            print(note)
        print(f"wrote {out}")
    description = describe_bundle(out)
    if as_json:
        print(json.dumps(description.to_json(), indent=1))
    else:
        print("\n".join(description.lines(compared)))
