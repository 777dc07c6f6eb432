"""What the page begins with: pictures of the demo, and the paper's tasks and baselines with them."""

from __future__ import annotations

from typing import Any

from mvader_jax.data.scenes.world import render
from mvader_jax.paper.demo import INPUTS, TASKS
from mvader_jax.web.asked import Asked, Part
from mvader_jax.web.store import Store

#: The name of a task as the page shows it, its prompt as in `TASKS`, and what sampling starts from, if anything.
_SHOWN: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "style": ("Style: text and picture", TASKS["style"], None),
    "element": ("One element: text and picture", TASKS["element"], None),
    "text": ("A text alone", TASKS["text"], None),
    "variation": ("Variation: one picture", TASKS["variation"], None),
    "composition": ("Composition: two pictures", TASKS["composition"], None),
    "img2img": ("Baseline: image to image", TASKS["element"], "img2img"),
    "interpolation": ("Baseline: interpolation", TASKS["composition"], "interpolation"),
}


def examples(store: Store) -> dict[str, str]:
    """{a name: the id of its picture in the store}."""
    return {name: store.add(render(scene)).id for name, scene in INPUTS.items()}


def presets(pictures: dict[str, str]) -> list[dict[str, Any]]:
    """{"title", "parts", "task"} of each, as `Asked` holds them; the first is what a new page shows."""
    found = []
    for title, parts, task in _SHOWN.values():
        rows = tuple(
            Part(picture=pictures[part], name=part) if part in pictures else Part(text=part) for part in parts
        )
        asked = Asked(rows, task=task).to_json()
        found.append({"title": title, "parts": asked["parts"], "task": task})
    return found
