"""What may stand for an element of a prompt, and for a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mvader_jax as mv
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.images.read import load_image

PICTURE = render(scene_at(0, 3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_png(tmp_path / "a.png", PICTURE)
    return tmp_path / "a.png"


def test_a_pair_of_a_part_and_a_number_is_its_weight(file: Path) -> None:
    weighted = mv.Prompt.of([("a hat", 0.3), (file, 2), (PICTURE, np.float32(0.5)), "a cat"])
    assert weighted.elements[0] == mv.Text("a hat", 0.3) and weighted.elements[1] == mv.Image(str(file), 2.0)
    assert [element.weight for element in weighted.elements] == [0.3, 2.0, 0.5, 1.0]
    assert mv.Prompt.of(("a hat", 0.3)).elements == (mv.Text("a hat", 0.3),)
    assert mv.Prompt.of(("a hat", "a cat")).elements == (mv.Text("a hat"), mv.Text("a cat"))


@pytest.mark.parametrize(
    "given",
    [
        lambda file: file,
        lambda file: str(file),
        lambda file: file.read_bytes(),
        lambda file: io.BytesIO(file.read_bytes()),
        lambda file: file.open("rb"),
        lambda file: load_image(file),
        lambda file: PICTURE,
        lambda file: torch.from_numpy(PICTURE.copy()),
        lambda file: jnp.asarray(PICTURE),
    ],
)
def test_a_picture_may_be_given_as(given: Any, file: Path) -> None:
    """Every way twice: what a prompt holds is read as often as it is drawn."""
    image = mv.Image(given(file))
    for source in (image.image, image.image, given(file)):
        np.testing.assert_array_equal(np.asarray(load_image(source)), PICTURE)
    assert not repr(image).count("\n") and len(repr(image)) < 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mv.Prompt.of(5), "a prompt holds 5; accepted: texts, images, pairs of one and its weight"),
        (lambda: mv.Prompt.of(None), "a prompt holds None"),
        (lambda: mv.Prompt.of(np.float32(0.5)), "a prompt holds "),
        (lambda: mv.Prompt.of(["a hat", 0.3]), "a prompt holds 0.3"),
        (lambda: mv.Prompt.of([("a hat", "b", 0.3)]), "a prompt holds ('a hat', 'b', 0.3)"),
        (lambda: mv.Prompt.of({"text": "a"}), "a prompt holds {'text': 'a'}"),
        (lambda: mv.Prompt.of(("a hat", -1)), "the weight of 'a hat' is -1"),
        (lambda: mv.Prompt.of(("a hat", True)), "the weight of 'a hat' is True"),
        (
            lambda: mv.Prompt.of((mv.Text("a hat"), 0.3)),
            "Text('a hat') has a weight of its own; give 0.3 there",
        ),
        (lambda: mv.Prompt.of(("a.png", 0.3)), "names a picture"),
        (lambda: mv.Image(5), "a picture is of type int; accepted: a path, the bytes of a file"),
        (lambda: mv.Image(None), "a picture is of type NoneType; accepted"),
        (lambda: mv.Image([[1, 2]]), "a picture is of type list"),
        (lambda: mv.Image(io.StringIO("x")), "the file of a picture gives text; open it with 'rb'"),
        (lambda: mv.Text(5), "a text element holds a int"),
        (lambda: mv.Text("a", "b"), "the weight of 'a' is 'b'"),
        (lambda: mv.Text("a", spans=5), "spans is 5; expected {substring: factor}"),
        (lambda: mv.Text("a", spans="ab"), "spans is 'ab'; expected {substring: factor}"),
        (lambda: load_image(torch.zeros((2, 2, 3), requires_grad=True)), "is no array on the host"),
        (lambda: load_image(5), "a picture is of type int"),
    ],
)
def test_anything_else_is_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_closed_file_is_one_sentence(file: Path) -> None:
    with file.open("rb") as opened:
        pass
    with pytest.raises(UserError, match="cannot be read: read of closed file"):
        mv.Image(opened)
