"""The benchmark's numbers as Markdown."""

from __future__ import annotations

from typing import Any

from mvader_jax.paper.emoji.methods import KEYS, named


def as_markdown(result: dict[str, Any]) -> str:
    """A table for each kind of score, in percent; pixels in levels of 255."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for part in [name for name in result if name != "settings"]:
        for row in result[part]:
            names = tuple(n for n in row if n not in (*KEYS, "prompts", "pixels"))
            cells = [part, named(row), str(row["prompts"]), *(f"{100 * row[name]:.1f}" for name in names)]
            cells.append(f"{row['pixels']:.1f}" if "pixels" in row else "")
            tables.setdefault(names, []).append(f"| {' | '.join(cells)} |")
    blocks = []
    for names, lines in tables.items():
        head = ["part", "method", "prompts", *(name.replace("_", " at ") for name in names), "pixels"]
        blocks.append("\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]))
    return "\n\n".join(blocks)
