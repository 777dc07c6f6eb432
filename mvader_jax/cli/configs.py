"""`mvader configs`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def configs(
    name: Annotated[
        str | None, typer.Argument(help="print this one, as in mvader configs tiny > mine.py")
    ] = None,
) -> None:
    """List the configs that come with the package, or print one. `mvader train`, `plan` and `data encode` know them by name.

    \b
    Examples:
      mvader configs
      mvader configs tiny > mine.py
    """
    from mvader_jax.train.shipped import about, find_config, shipped_configs

    if name is not None:
        sys.stdout.write(find_config(name).read_text(encoding="utf-8"))
        return
    known = shipped_configs()
    width = max(map(len, known))
    for config, path in known.items():
        print(f"{config:{width}}  {about(path)}")
