"""Every field of a config, as tables: read from the classes, their bounds, and the `#:` comments above the fields.

`python -m mvader_jax.train.fields docs/configs.md` writes them into the page; `mvader configs --fields` prints them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from mvader_jax.bounds import LARGEST_INT, Bound
from mvader_jax.data.config import DataConfig
from mvader_jax.lora.config import LoraConfig
from mvader_jax.settings import Choice, type_hints
from mvader_jax.storage.atomic import write_file
from mvader_jax.train.config import Group, Judges, Stage, TrainConfig
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.show import line

#: The last heading of the page: what follows it is written by this module.
HEADING = "## Every field"
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false"}


def tables() -> str:
    """All tables, in Markdown: a config, a stage, and what a stage holds, each kind of it."""
    sections = [
        _section(cls.__name__, cls)
        for cls in (TrainConfig, Stage, Group, LoraConfig, Judges, OptimizerConfig, DataConfig)
    ]
    for base in (
        hint for cls in (Stage, DataConfig) for hint in type_hints(cls).values() if _is_choice(hint)
    ):
        sections += [
            _section(f"{cls.__name__}: {base.__name__.lower()} `{kind}`", cls)
            for kind, cls in base.kinds.items()
        ]
    return "\n\n".join([f"Integers go up to {LARGEST_INT:,}, numbers as far as float32.", *sections]) + "\n"


def meanings(cls: type) -> dict[str, str]:
    """{field: what the `#:` lines above it say}, of a dataclass and those it is made from."""
    found: dict[str, str] = {}
    for part in reversed([one for one in cls.__mro__ if dataclasses.is_dataclass(one)]):
        said: list[str] = []
        for text in inspect.getsource(part).splitlines():
            if comment := re.fullmatch(r"    #: ?(.*)", text):
                said.append(comment[1])
                continue
            if field := re.match(r"    (\w+): ", text):
                found[field[1]] = " ".join(said)
            said = []
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(cls)}


def _section(title: str, cls: Any) -> str:
    summary = (cls.__doc__ or "").partition("\n")[0]
    head = f"### {title}\n\n{summary}"
    fields = dataclasses.fields(cls)
    if not fields:
        return f"{head} It has no settings."
    said, hints = meanings(cls), type_hints(cls)
    rows: list[tuple[str, ...]] = [("field", "type", "default", "accepted", "meaning"), ("---",) * 5]
    for field in fields:
        hint = hints[field.name]
        cells = (f"`{field.name}`", _type(hint), _default(field), _accepted(hint), said[field.name])
        rows.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return "required" if value is dataclasses.MISSING else f"`{line(value)}`"


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "one of"
    if origin in (Union, types.UnionType):
        return " or ".join("none" if one is type(None) else _type(one) for one in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"tuple of {_type(arguments[0])}"
        return f"({', '.join(map(_type, arguments))})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"name: {_type(arguments[1])}"
    if hint in _WORDS:
        return _WORDS[hint]
    name: str = hint.__name__
    return f"`{name}`"


def _accepted(hint: Any) -> str:
    """What is accepted beyond the type, of a value or of each of its items."""
    if _is_choice(hint):
        return ", ".join(f"`{cls.__name__}`" for cls in hint.kinds.values())
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{line(value)}`" for value in typing.get_args(hint))
    return "; ".join(dict.fromkeys(_bounds(hint))).replace(f" to {LARGEST_INT}", " or more")


def _bounds(hint: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        yield ", ".join(f"`{line(value)}`" for value in arguments)
        return
    for part in arguments:
        if isinstance(part, Bound):
            yield part.accepted
        elif part is not Ellipsis:
            yield from _bounds(part)


def _is_choice(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Choice)


def main() -> None:
    """Writes the tables into the page that is named."""
    path = Path(sys.argv[1])
    text = path.read_text(encoding="utf-8").partition(HEADING)[0]
    write_file(path, f"{text}{HEADING}\n\n{tables()}")


if __name__ == "__main__":
    main()
