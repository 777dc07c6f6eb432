"""What the page begins with: pictures of the demo, and the paper's tasks and baselines with them."""

from __future__ import annotations

from typing import Any

from mvader_jax.paper.demos import Demo
from mvader_jax.web.asked import Asked, Part
from mvader_jax.web.store import Store

#: (The title that the page shows, the task of the demo whose prompt it has, what sampling starts from, if anything.)
_SHOWN: tuple[tuple[str, str, Any], ...] = (
    ("Style: text and picture", "style", None),
    ("One element: text and picture", "element", None),
    ("A text alone", "text", None),
    ("Variation: one picture", "variation", None),
    ("Composition: two pictures", "composition", None),
    ("Baseline: image to image", "element", "img2img"),
    ("Baseline: interpolation", "composition", "interpolation"),
)


def examples(demo: Demo, store: Store) -> dict[str, str]:
    """{a name: the id of its picture in the store}."""
    return {name: store.add(picture()).id for name, picture in demo.inputs.items()}


def presets(demo: Demo, pictures: dict[str, str]) -> list[dict[str, Any]]:
    """{"title", "parts", "task"} of each, as `Asked` holds them; the first is what a new page shows."""
    found = []
    for title, asked_for, task in _SHOWN:
        parts = demo.tasks[asked_for]
        rows = tuple(
            Part(picture=pictures[part], name=part) if part in pictures else Part(text=part) for part in parts
        )
        asked = Asked(rows, task=task).to_json()
        found.append({"title": title, "parts": asked["parts"], "task": task})
    return found
