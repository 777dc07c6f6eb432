"""What a command line gives, and the refusal of what does nothing there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

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


def listed(flag: str, text: str | None, read: Callable[[str], Any] = str) -> tuple[Any, ...] | None:
    """What a flag names, "a,b", each as `read` reads it; None where it is not given.

    Raises UserError for nothing between two commas, and for what is named twice, which would be done once.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise UserError(
            f"{flag} {text!r} has nothing where a name is expected; names are separated by one comma"
        )
    found = tuple(read(part) for part in parts)
    for part, value in zip(parts, found, strict=True):
        if found.count(value) > 1:
            raise UserError(f"{flag} names {part} twice; name it once")
    return found
