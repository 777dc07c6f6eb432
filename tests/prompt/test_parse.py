"""What a string of a prompt is: a text, or a picture's name, which is never drawn as words unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import mvader_jax as mv
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.images.preprocess import region_weights
from mvader_jax.images.read import load_image
from mvader_jax.prompt.parse import parse_part, read_part, weigh_within


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_png(tmp_path / "circle.png", render(scene_at(0, 1)))
    save_png(tmp_path / "a circle", render(scene_at(0, 1)))
    (tmp_path / "notes").write_text("words")
    return tmp_path


@pytest.mark.parametrize(
    ("part", "text", "weight"),
    [
        ("a red hat", "a red hat", 1.0),
        ("a red hat@0.3", "a red hat", 0.3),
        ("mail me@home now", "mail me@home now", 1.0),
        ("text:circle.png", "circle.png", 1.0),
        ("text:circle.png@2", "circle.png", 2.0),
        ("node.js", "node.js", 1.0),
        ("St. Peter", "St. Peter", 1.0),
        ("...", "...", 1.0),
    ],
)
def test_texts(folder: Path, part: str, text: str, weight: float) -> None:
    element = parse_part(part)
    assert isinstance(element, mv.Text) and (element.text, element.weight) == (text, weight)


@pytest.mark.parametrize("part", ["circle.png", "image:circle.png", "a circle", "circle.png@0.3"])
def test_pictures(folder: Path, part: str) -> None:
    element = read_part(part)
    assert isinstance(element, mv.Image) and element.weight == (0.3 if "@" in part else 1.0)


ENDINGS = "png avif HEIC svg dng psd jgp jpge pngg jpg2 wepb tif@0.3 jp2"


@pytest.mark.parametrize("name", [*(f"raw/IMG_1.{ending}" for ending in ENDINGS.split()), "a logo.svg"])
def test_a_name_that_ends_as_pictures_do_is_asked_about(folder: Path, name: str) -> None:
    bare = name.partition("@")[0]
    with pytest.raises(
        UserError, match=f"{bare}' does not exist; write 'text:{bare}' if it is meant as text"
    ):
        parse_part(name)


def test_a_files_name_that_is_no_picture_has_the_hint(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'notes' is not an image .*; write 'text:notes' if it is meant"):
        read_part("notes")
    with pytest.raises(UserError, match=r"not an image that Pillow can read$"):
        read_part("image:notes")


@pytest.mark.parametrize("name", ["circle.png", "nowhere.jpg", "a circle", "typo.avif", "photo.jgp"])
def test_a_string_that_names_a_picture_is_not_drawn_as_words(folder: Path, name: str) -> None:
    for prompt in (name, [name], ["a hat", name]):
        with pytest.raises(UserError, match=r"names a picture; write Image\('"):
            mv.Prompt.of(prompt)
    with pytest.raises(UserError, match=r'names a picture; write {"image": ...}'):
        mv.Prompt.from_json(["a hat", name], folder)
    assert mv.Prompt.of([mv.Text(name), mv.Image(name), Path(name)]).elements[0] == mv.Text(name)
    assert mv.Prompt.of("a drawing of circle.pngs and more").elements


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://a.org/photo?w=300", "s3://b/x", "data:image/png;base64,iVBO"]
)
def test_a_url_is_asked_about_and_never_fetched(folder: Path, url: str) -> None:
    for prompt in (url, ["a hat", url], [(url, 0.5)]):
        with pytest.raises(UserError, match="names a picture"):
            mv.Prompt.of(prompt)
    for ask in (
        lambda: mv.Image(url),
        lambda: load_image(url),
        lambda: parse_part(url),
        lambda: parse_part(f"image:{url}"),
        lambda: mv.Prompt.from_json([{"image": url}], folder),
    ):
        with pytest.raises(UserError, match="is a URL; pictures are read from files: save it as one"):
            ask()
    assert parse_part(f"text:{url}") == mv.Text(url)
    assert mv.Prompt.of(f"a drawing of {url} as text").elements


def test_a_text_is_unicode() -> None:
    for text in ("caf\udce9", json.loads('"lone \\ud83d surrogate"')):
        with pytest.raises(UserError, match="not valid Unicode"):
            mv.Text(text)


BIG = 10**400


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "x", "weight": BIG}, "the weight of 'x'"),
        ({"text": "x", "spans": {"x": BIG}}, "the weight of the span"),
        ({"image": "circle.png", "weight": BIG}, "the weight of the image"),
        (
            {"image": "circle.png", "regions": [{"box": [0, 0, 1, 1], "weight": BIG}]},
            "the weight of a region",
        ),
        ({"image": "circle.png", "regions": [{"box": [0, 0, BIG, 1], "weight": 1}]}, "regions is not"),
        ({"image": "circle.png", "regions": [{"box": [0, 0, 1], "weight": 1}]}, "regions must be"),
        ({"image": "circle.png", "regions": [{"mask": "no.png", "weight": 1}]}, "no.png': it does not exist"),
        ({"image": "circle.png", "regions": [{"mask": "n\0.png", "weight": 1}]}, "it is no image"),
        ({"image": "circle.png", "regions": [{"mask": "n\ud83d.png", "weight": 1}]}, "it is no image"),
        ({"image": "circle.png", "regions": [{"mask": "notes", "weight": 1}]}, "it is no image"),
        ({"image": "circle.png", "regions": [{"mask": 3, "weight": 1}]}, "regions must be"),
        ({"image": "circle.png", "regions": [None]}, "regions must be"),
        ({"image": "circle.png", "regions": "box"}, "regions must be"),
        ({"image": "circle.png", "regions": {"box": 1}}, "regions must be"),
        ({"image": "circle.png", "regions": 3}, "regions must be"),
    ],
)
def test_json_that_cannot_be_read_is_one_sentence(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        mv.Prompt.from_json(value, folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_words_and_regions_within_parts(folder: Path) -> None:
    """A number counts the parts; a mask is a file, a box four numbers; several multiply."""
    PIL.Image.fromarray(np.array([[255, 0]], np.uint8)).save("mask.png")
    parts = [parse_part("a red hat"), parse_part("circle.png@0.3")]
    (text, image), (away,) = weigh_within(
        parts,
        [parse_part("a red@home cat")],
        ["1:red@2", "n1:red@home@0.5"],
        ["2:mask.png@2", "2:0,0,0.5,1@0"],
    )
    assert text == mv.Text("a red hat", 1.0, {"red": 2}) and away.spans == (("red@home", 0.5),)
    (mask, twice), box = image.regions
    assert mask.tolist() == [[1, 0]] and twice == 2 and box == ((0, 0, 0.5, 1), 0) and image.weight == 0.3
    for span, region, message in (
        ("red@2", None, "expected NUMBER:WHAT@FACTOR, as in 1:red@2"),
        ("2:red@2", None, "part 2 of the prompt is no text"),
        ("3:red@2", None, "part 3 of the prompt is no text"),
        ("0:red@2", None, "part 0 of the prompt is no text"),
        ("1:blue@2", None, "does not occur"),
        ("1:red@-2", None, "at least 0"),
        (None, "1:mask.png@2", "part 1 of the prompt is no image"),
        (None, "2:none.png@2", "does not exist"),
        (None, "2:0,0,a,1@2", "expected LEFT,TOP,RIGHT,BOTTOM"),
        (None, "2:0,0,2,1@2", "no box"),
    ):
        with pytest.raises(UserError, match=message):
            weigh_within(parts, [], [span] if span else [], [region] if region else [])


def test_a_painted_mask_is_a_picture_too() -> None:
    """White counts, black and what is transparent do not; the weight of a token is the mean over its cell."""
    painted = PIL.Image.new("LA", (4, 2), (255, 0))
    painted.paste((255, 255), (0, 0, 1, 2))
    ((mask, _),) = mv.Image("circle.png", regions=[(painted, 3.0)]).checked_regions
    assert mask.tolist() == [[1, 0, 0, 0]] * 2
    np.testing.assert_allclose(region_weights([(mask, 3.0)], 2, (4, 4)), [2, 1, 2, 1])
