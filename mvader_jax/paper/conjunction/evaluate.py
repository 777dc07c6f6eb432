"""A bundle that draws scenes, judged by the scenes' reader; and the table of anybody's counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvader_jax.paper.conjunction.tasks import (
    COUNTS,
    PARTS,
    Conjunction,
    conjunctions,
    read,
    scene_things,
    shares,
)
from mvader_jax.paper.evaluate import Evaluation, Progress, draw
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.sampling.pipeline import Pipeline


def prompt_of(task: Conjunction) -> Prompt:
    """A task of scenes' things, their pictures rendered."""
    return Prompt(
        tuple(Text(part) if isinstance(part, str) else Image(part.pixels()) for part in task.elements)
    )


def evaluate(
    pipe: Pipeline,
    settings: Evaluation,
    parts: Sequence[str] = PARTS,
    *,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """{"settings", part: shares}. Raises UserError for an unknown part, and where NaN or infinity arose."""
    asked = {part: conjunctions(scene_things(), part, settings.count) for part in parts}
    recorded = {"count": settings.count, **settings.sampling.recorded(), **pipe.recorded_lora}
    result: dict[str, Any] = {"settings": recorded}
    for part, tasks in asked.items():
        done = 0

        def told(more: int, part: str = part, total: int = len(tasks)) -> None:
            nonlocal done
            done += more
            progress(part, done, total)

        pictures = draw(pipe, [prompt_of(task) for task in tasks], settings, told)
        result[part] = judged(tasks, list(pictures))
    return result


def judged(tasks: Sequence[Conjunction], pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Shares of pictures of scenes, of any size."""
    return shares([read(task, picture) for task, picture in zip(tasks, pictures, strict=True)])


def as_markdown(result: Mapping[str, Any]) -> str:
    """The shares in percent, a row of each part or judge."""
    lines = ["| | " + " | ".join(name.replace("_", ", ") for name in COUNTS) + " |", "|---" * 6 + "|"]
    for name, found in result.items():
        if name != "settings":
            lines.append(f"| {name} | " + " | ".join(f"{100 * found[count]:.1f}" for count in COUNTS) + " |")
    return "\n".join(lines)
