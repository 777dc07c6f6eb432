"""`mvader web`."""

from __future__ import annotations

import dataclasses
from time import sleep as pause
from typing import Annotated

import typer

from mvader_jax.bounds import ComputeDtype, FrozenDtype, between
from mvader_jax.cli._options import BundleName, DrawMesh, KeptIn, Lora, Quiet
from mvader_jax.settings import convert


def web(
    bundle: BundleName = "tiny",
    mesh: DrawMesh = "",
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
    frozen_dtype: KeptIn = None,
    lora: Lora = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="of a training run: the parameters themselves, not their average")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            help="answer others too, at this address (0.0.0.0: all); the address printed holds a token"
        ),
    ] = None,
    port: Annotated[
        int | None, between(1, 65535), typer.Option(help="[default: the first that is free from 7860 on]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Open a page where a prompt's weights are sliders. Pictures are drawn as they move; Ctrl-C ends it.

    \b
    Examples:
      mvader web
      mvader web --bundle runs/tiny/distill/bundle
      mvader web --host 0.0.0.0 --port 8000
    """
    import secrets

    convert(ComputeDtype, dtype, "--dtype")
    convert(FrozenDtype | None, frozen_dtype, "--frozen-dtype")
    from mvader_jax.cli._loading import load_pipeline
    from mvader_jax.cli._progress import status
    from mvader_jax.cli.main import explained
    from mvader_jax.web.said import Opened
    from mvader_jax.web.server import serve
    from mvader_jax.web.studio import Studio

    opened = Opened(bundle, dtype, frozen_dtype, mesh, raw, tuple(lora or ()))
    with status(f"loading {bundle}", quiet):
        pipe = load_pipeline(fast=None, **dataclasses.asdict(opened))
        token = None if host is None else secrets.token_urlsafe(24)
        server, address = serve(Studio(pipe, opened, explained), host or "127.0.0.1", port, token)
    print(f"{address}?token={token}" if token else address, flush=True)
    try:
        while True:
            pause(3600)
    finally:
        server.get_blocks().close(verbose=False)
