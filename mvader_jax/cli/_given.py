"""What a command line gives, and the refusal of what does nothing there."""

from __future__ import annotations

from collections.abc import Collection

import typer

from mvader_jax.errors import UserError


def given(context: typer.Context) -> dict[str, str]:
    """Parameters that the command line names, and how: a flag as it is spelled, an argument by its value."""
    names = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name and source is not None and source.name == "COMMANDLINE":
            flag = parameter.param_type_name == "option"
            names[parameter.name] = parameter.opts[0] if flag else repr(context.params[parameter.name])
    return names


def refuse(context: typer.Context, what: str, takes: Collection[str]) -> None:
    """Raises UserError for the first parameter that is given and is not among those that `what` takes."""
    for name, spelled in given(context).items():
        if name not in takes:
            raise UserError(f"{spelled} does nothing for {what}; leave it out")
