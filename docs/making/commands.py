"""The command line as Markdown, read from its parser."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import typer


def parser() -> Any:
    """The whole of mvader, as its parser has it."""
    from mvader_jax.cli import register
    from mvader_jax.cli.main import app

    if not app.registered_commands:
        register(app)
    return typer.main.get_command(app)


def reference() -> str:
    """A section of every command and sub-command: usage, what it does, arguments and options."""
    return "\n\n".join(_sections(parser(), "mvader")) + "\n"


def _sections(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage:").strip()
    yield f"{'##' if name.count(' ') < 2 else '###'} {name}\n\n```text\n{usage}\n```"
    yield from _prose(command.help)
    for kind in ("argument", "option"):
        records = [one.get_help_record(context) for one in command.params if one.param_type_name == kind]
        rows = [f"| `{name}` | {_escaped(meaning)} |" for name, meaning in filter(None, records)]
        if rows:
            yield "\n".join([f"| {kind} | meaning |", "|---|---|", *rows])
    for inner, found in getattr(command, "commands", {}).items():
        yield from _sections(found, f"{name} {inner}")


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of a help; one that begins with a backspace keeps its lines, and is of examples."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if not paragraph.startswith("\b"):
            yield _escaped(" ".join(paragraph.split()))
            continue
        lines = paragraph.removeprefix("\b\n").splitlines()
        if not lines[0].startswith(" "):
            yield _escaped(lines.pop(0))
        yield "\n".join(["```bash", *(line.removeprefix("  ") for line in lines), "```"])


def _escaped(text: str) -> str:
    """Words of a help that Markdown leaves as they are."""
    return re.sub(r"([*_|\[\]])", r"\\\1", html.escape(text, quote=False))
