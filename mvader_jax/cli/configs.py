"""`mvader configs`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mvader_jax.errors import UserError


def configs(
    name: Annotated[
        str | None, typer.Argument(help="print this one, as in mvader configs tiny > mine.py")
    ] = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="print what a config may hold: every field, its default and meaning"),
    ] = False,
) -> None:
    """List the configs that come with the package, or print one. `mvader train`, `plan` and `data encode` know them by name.

    \b
    Examples:
      mvader configs
      mvader configs tiny > mine.py
      mvader configs --fields
    """
    from mvader_jax.train.shipped import about, shipped_configs

    if fields:
        if name is not None:
            raise UserError(f"--fields are those of every config; leave {name!r} out")
        from mvader_jax.train.fields import tables

        print(tables(), end="")
        return
    known = shipped_configs()
    if name is not None:
        if name not in known:
            raise UserError(f"no config {name!r} comes with the package; there are {', '.join(known)}")
        sys.stdout.write(known[name].read_text(encoding="utf-8"))
        return
    width = max(map(len, known))
    for config, path in known.items():
        print(f"{config:{width}}  {about(path)}")
