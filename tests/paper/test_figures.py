"""What the labels of figures say; `tests/sampling/test_tasks.py` lays every figure out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mvader_jax.paper.figures import FIGURES, Options
from mvader_jax.prompt.elements import Image, Text

SMALL = np.full((64, 64, 3), 99, np.uint8)


def drawing(prompt: Any, settings: Any = None, **options: Any) -> list[Any]:
    """A pipeline that draws nothing."""
    return [SMALL] * options.get("num_images", 1)


def labels(name: str, inputs: list[Any] | None = None) -> list[list[str]]:
    options = Options(thetas=(1.0, 0.3))
    pipe: Any = drawing
    rows = FIGURES[name].draw(pipe, inputs or FIGURES[name].defaults(), options, lambda _: None)
    return [[cell.label.replace("\u00a0", " ") for cell in row] for row in rows]


def test_a_theta_names_its_element() -> None:
    assert labels("weights") == [
        ["text", "image"],
        ["text θ = 1, image θ = 1", "text θ = 1, image θ = 0.3"],
        ["text θ = 0.3, image θ = 1", "text θ = 0.3, image θ = 0.3"],
    ]
    assert labels("weights", [Image(SMALL, 0.5), Image(SMALL)])[1][1] == "image 1 θ = 1, image 2 θ = 0.3"
    assert labels("5")[0][:3] == ["text", "image, θ = 0.1", "red"]
    assert labels("4")[0][-1] == "[text, image, θ = 0.2]"
    assert labels("9")[1][:3] == ["image 2", "image 1", "[image 2, image 1]"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_of_a_figure_has_a_label(name: str) -> None:
    pipe: Any = drawing
    for row in FIGURES[name].draw(pipe, FIGURES[name].defaults(), Options(), lambda _: None):
        assert all(cell.label for cell in row if cell.picture is not None)


def test_texts_are_told_apart() -> None:
    assert labels("weights", [Text("a"), Text("b")])[0] == ["text 1", "text 2"]
