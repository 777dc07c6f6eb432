"""What the house writes in docstrings and comments, for the API reference.

A docstring's `name: meaning.` is of a parameter or field where a sentence begins, and becomes an item of a list.
A comment of `#:` lines above a field or variable is its docstring.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class HouseStyle(griffe.Extension):
    """Read by griffe as it loads the package; the code is not run."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turns the words of one object's docstring into Markdown."""
        if isinstance(obj, griffe.Attribute) and obj.docstring is None and (text := _above(obj)):
            obj.docstring = griffe.Docstring(text, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value, _names(obj))


def _names(obj: griffe.Object) -> list[str]:
    """The parameters of a function; of a class those of its making, and its members."""
    if isinstance(obj, griffe.Function):
        return [one.name for one in obj.parameters]
    if isinstance(obj, griffe.Class):
        init = obj.members.get("__init__")
        return [*obj.members, *(_names(init) if isinstance(init, griffe.Function) else ())]
    return []


def listed(text: str, names: list[str]) -> str:
    """`text` with an item of a list where a sentence begins with some of `names` and a colon.

    The list ends with its paragraph, or where a line says what is raised.
    """
    if not names:
        return text
    name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    item = re.compile(rf"(?:^|\n|(?<=[.;]) )((?:{name})(?:, (?:{name}))*): ")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append(paragraph)
            continue
        before, *rest = item.split(paragraph)
        items, after = [], ""
        for said, meaning in zip(rest[::2], rest[1::2], strict=True):
            meaning, *error = re.split(r"\s(?=Raises )", meaning, maxsplit=1)
            after += "".join(error)
            codes = ", ".join(f"`{one}`" for one in said.split(", "))
            items.append(f"- {codes}: {_ended(' '.join(meaning.split()))}")
        before = _ended(before.strip()) if items else before
        paragraphs += [one for one in (before, "\n".join(items), after) if one]
    return "\n\n".join(paragraphs)


def _ended(text: str) -> str:
    return re.sub(r";$", ".", text)


def _above(obj: griffe.Attribute) -> str:
    """The `#:` lines above where an attribute is assigned."""
    if obj.lineno is None or isinstance(obj.filepath, list):
        return ""
    lines = obj.lines_collection[obj.filepath][: obj.lineno - 1]
    said: list[str] = []
    while lines and (comment := re.fullmatch(r"\s*#: ?(.*)", lines.pop())):
        said.insert(0, comment[1])
    return "\n".join(said)
