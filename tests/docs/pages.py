"""What a page shows: its blocks, its words in backquotes, and the commands in them as a shell reads them."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Every page of the project.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tpu/*.md"))
)
#: Every config; its docstring is a page too.
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*.py"))
_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.S)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of a page, without its indentation. kind: what a fence says it is in; line: of the page, from 1."""

    text: str
    line: int
    kind: str = ""


def text_of(page: str) -> str:
    """A page, or the docstring of a Python file, which is read as one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if page.endswith(".py") else text


def blocks(text: str) -> Iterator[Block]:
    """Indented blocks behind an empty line, as Markdown has them, and fenced ones."""
    held: list[str] = []
    start, fence, kind, before = 0, "", "", ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if fence:
            if line.strip().startswith(fence):
                yield Block("\n".join(held), start, kind)
                held, fence = [], ""
            else:
                held.append(line)
        elif re.match(r"\s*(```|~~~)", line):
            if held:
                yield Block("\n".join(held).rstrip(), start)
                held = []
            fence, kind, start = line.strip()[:3], line.strip()[3:].strip(), number + 1
        elif held and (line.startswith("    ") or not line.strip()):
            held.append(line[4:])
        elif not before.strip() and line.startswith("    ") and not re.match(r"\s+([-*]|\d+\.) ", line):
            held, start = [line[4:]], number
        if held and not fence and line.strip() and not line.startswith("    "):
            yield Block("\n".join(held).rstrip(), start)
            held = []
        before = line
    if held:
        yield Block("\n".join(held).rstrip(), start)


def quoted(text: str) -> Iterator[str]:
    """The words in single backquotes, outside of blocks; those of a table have their bars as they are meant."""
    prose = "\n".join(
        line
        for line in re.sub(r"(?ms)^\s*```.*?^\s*```", "", text).splitlines()
        if not line.startswith("    ")
    )
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        yield " ".join(match[1].replace("\\|", "|").split())


def commands(text: str, program: str = "") -> Iterator[list[str]]:
    """The words of every command in a text's blocks, in order. program: that they begin with."""
    for block in blocks(text):
        if block.kind in ("", "bash", "sh", "shell"):
            yield from (words for words in simple(block.text) if not program or words[0] == program)


def lines_of(text: str) -> list[str]:
    """A shell's lines, those put together that end in a backslash."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def simple(text: str) -> Iterator[list[str]]:
    """The commands of a block of shell: `for` over words unrolled, variables put in, `&&` taken apart."""
    variables: dict[str, str] = {}
    loop: tuple[str, list[str]] | None = None
    body: list[str] = []
    for line in lines_of(text):
        words = shlex.split(line, comments=True)
        if words[:1] == ["for"] and words[2:3] == ["in"]:
            loop = words[1], [word.rstrip(";") for word in words[3:] if word not in ("do", ";")]
        elif words == ["done"] and loop:
            for value in loop[1]:
                for inner in body:
                    yield from _of_line(inner, {**variables, loop[0]: value})
            loop, body = None, []
        elif loop:
            body.append(line)
        else:
            yield from _of_line(line, variables)


def _of_line(line: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The commands of a line. What it assigns alone is kept in `variables`; before a command it is left out."""
    for part in re.split(r"\s+&&\s+", line):
        put = re.sub(r"(?<!')\$(\w+)", lambda match: variables.get(match[1], match[0]), part)
        words = shlex.split(put, comments=True)
        if words[-2:-1] == [">"]:  # into a file of the reader's
            del words[-2:]
        while words and _ASSIGNED.fullmatch(words[0]):
            name, _, value = words.pop(0).partition("=")
            if not words:
                variables[name] = value
        if words:
            yield words[: words.index(">")] if ">" in words else words
