"""What names a config and one of its stages, and the option by which a stage went before."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mvader_jax.errors import UserError

DEFAULT = "diffusion"
Config = Annotated[str, typer.Argument(help="a file, or a name of `mvader configs`")]
#: `--objective`, which named a stage before `--stage` did.
Objective = Annotated[str | None, typer.Option(hidden=True)]


def chosen_stage(stage: str | None, objective: str | None) -> str:
    """The name of the stage. The old spelling works, with one line on standard error.

    Raises UserError where both name one.
    """
    if objective is None:
        return stage or DEFAULT
    if stage is not None:
        raise UserError("--objective is what --stage was called before; name the stage once")
    print("mvader: --objective is now --stage", file=sys.stderr)
    return objective
