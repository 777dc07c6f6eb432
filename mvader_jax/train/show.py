"""A config as the Python that makes it again: what `mvader train --show` prints."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.train.config import TrainConfig

#: Characters of a line, as the project's own files have them.
_WIDTH = 110


def as_python(config: TrainConfig) -> str:
    """A config file whose `get_config` returns an equal config; what has its default is left out.

    Raises UserError where the config holds an object of a class that the config file itself defines.
    """
    return (
        '"""As `mvader train --show` wrote it; what is not named has its default."""\n\n'
        f"{_imports(config)}\n\n\n"
        "def get_config() -> TrainConfig:\n"
        f"    return {_expression(config, 4, 'return ')}\n"
    )


def _imports(config: TrainConfig) -> str:
    names: dict[str, set[str]] = {}
    for cls in {type(value) for value in _settings(config)}:
        names.setdefault(_module(cls), set()).add(cls.__name__)
    return "\n".join(
        f"from {module} import {', '.join(sorted(found))}" for module, found in sorted(names.items())
    )


def _module(cls: type) -> str:
    """Where a class is imported from: the package that offers it, if its file's does."""
    module = cls.__module__
    package = module.rpartition(".")[0]
    for place in (package, module):
        if place in sys.modules and getattr(sys.modules[place], cls.__name__, None) is cls:
            return place
    raise UserError(
        f"the config holds {cls.__name__}, a class that its own file defines: there is no module to import it from"
    )


def _settings(value: Any) -> Iterator[Any]:
    """Every dataclass object within a value that is written, itself first."""
    if dataclasses.is_dataclass(value):
        yield value
        for _, item in _named(value):
            yield from _settings(item)
    elif isinstance(value, (tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _settings(item)


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass object that differ from their defaults."""
    for field in dataclasses.fields(value):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        item = getattr(value, field.name)
        if default is dataclasses.MISSING or item != default:
            yield field.name, item


def _expression(value: Any, indent: int, before: str) -> str:
    """`value` as Python, laid out as ruff does: on one line where it fits, else an item a line.

    indent: of the line that it begins on; before: what stands on that line before it.
    """
    opening, items, closing = _pieces(value)
    text = line(value)
    # A comma may follow.
    if not items or indent + len(before) + len(text) < _WIDTH:
        return text
    inner = " " * (indent + 4)
    lines = [f"{inner}{key}{_expression(item, indent + 4, key)},\n" for key, item in items]
    return f"{opening}\n{''.join(lines)}{' ' * indent}{closing}"


def line(value: Any) -> str:
    """A value of a config as Python, on one line."""
    opening, items, closing = _pieces(value)
    inside = ", ".join(key + line(item) for key, item in items)
    return f"{opening}{inside}{',' if len(items) == 1 and opening == '(' else ''}{closing}"


def _pieces(value: Any) -> tuple[str, list[tuple[str, Any]], str]:
    """(what opens an expression, what stands before each item and the item, what closes it)."""
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}(", [(f"{name}=", item) for name, item in _named(value)], ")"
    if isinstance(value, Mapping):
        return "{", [(f"{_word(key)}: ", item) for key, item in value.items()], "}"
    if isinstance(value, tuple):
        return "(", [("", item) for item in value], ")"
    return _word(value), [], ""


def _word(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    # As ruff quotes: double, unless that asks for more backslashes.
    quote = "'" if value.count('"') > value.count("'") else '"'
    return quote + f"\\{quote}".join(repr(part)[1:-1] for part in value.split(quote)) + quote
