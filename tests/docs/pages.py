"""The command lines of a page or a docstring, as a shell would read them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator


def commands(text: str, program: str = "") -> Iterator[list[str]]:
    """The words of every command in a text's indented blocks, in order; lines that end in a backslash go on.

    program: that they begin with, where a text has other blocks too.
    """
    whole = ""
    for line in text.splitlines():
        if not whole and not (line.startswith("    ") and line.strip().startswith(program)):
            continue
        whole += line.strip()
        if whole.endswith("\\"):
            whole = whole.removesuffix("\\")
            continue
        if whole:
            yield shlex.split(whole, comments=True)
        whole = ""
