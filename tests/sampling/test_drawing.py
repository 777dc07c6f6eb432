"""What a picture says it was drawn with: kept in its PNG, read back, drawn again bit for bit; and what lies about it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

import mvader_jax as mv
from mvader_jax.images import inputs
from mvader_jax.sampling.batch.given import read_given
from mvader_jax.sampling.pictures import DRAWN, INPUTS

RNG = np.random.default_rng(0)
SHADES = RNG.integers(0, 255, (20, 16, 3), np.uint8)
MASK = RNG.uniform(0, 1, (5, 7)).astype(np.float32)
FEW = {"steps": 2}


@pytest.fixture(scope="module")
def pipe() -> mv.Pipeline:
    return mv.Pipeline(micro.bundle(micro.NANO))


Asked = list[tuple[Any, Any]]


@pytest.fixture
def asked(pipe: mv.Pipeline, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What programs were called with; in their place black pictures."""
    calls: Asked = []

    def black(draws: Any, static: Any, *_: object) -> tuple[jax.Array, jax.Array]:
        calls.append((draws, static))
        return jnp.zeros((len(draws.seeds), 8, 8, 3), np.uint8), jnp.ones(len(draws.seeds), bool)

    monkeypatch.setattr(pipe, "generate", black)
    return calls


def plain(record: Any) -> Any:
    return json.loads(json.dumps(record))


def photo(path: Path, shades: np.ndarray = SHADES) -> Path:
    PIL.Image.fromarray(shades).save(path)
    return path


def png(path: Path, **chunks: Any) -> Path:
    """Any PNG with these text chunks."""
    info = PngInfo()
    for key, value in chunks.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    PIL.Image.fromarray(SHADES).save(path, pnginfo=info)
    return path


PROMPTS: dict[str, Any] = {
    "words": (["a red hat", ("a cat", 0.3)], {"seed": 5, "num_images": 3, "guidance_scale": 3.0}),
    "spans, factors": (
        mv.Prompt([mv.Text("a red hat", 0.5, {"red": 2})], decoder_factors=[0.5], balance=True),
        {"negative": mv.Prompt(["a cat"], site="decoder"), "negative_strength": 0.5},
    ),
    "pictures, regions": (
        ["in blue", mv.Image(SHADES, 0.3, [((0, 0, 0.5, 1), 2.0), (MASK, 0.2)]), mv.Image(SHADES)],
        {"negative": mv.Image(SHADES[:8]), "sampler": "ddim", "eta": 0.5},
    ),
    "a start": ("a red hat", {"init_image": [SHADES, SHADES[:9]], "shares": [0.3, 0.7], "strength": 0.5}),
    "no words": (None, {"init_image": SHADES, "strength": 1.0, "guidance_interval": "0.5,3"}),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_read_back_it_is_the_same_drawing(asked: Asked, pipe: mv.Pipeline, tmp_path: Path, name: str) -> None:
    """Everything that a picture depends on is bitwise the same, of the PNG, its bytes, the Pillow picture that it is opened
    as, and the picture in memory."""
    prompt, options = PROMPTS[name]
    drawn = pipe(prompt, **FEW, **options)
    path = drawn.save(tmp_path)[len(drawn) - 1]
    drawing = mv.read_drawing(path)
    for again in (path.read_bytes(), PIL.Image.open(path), drawn[-1]):
        assert plain(mv.read_drawing(again).recorded) == plain(drawing.recorded)
    again = drawing.draw(pipe)
    assert plain(again[0].info[DRAWN]) == plain(drawn[-1].info[DRAWN])
    (first, static), (second, again_static) = asked
    assert static == again_static
    last = dataclasses.replace(first, seeds=first.seeds[-1:], indices=first.indices[-1:])
    last = dataclasses.replace(last, guidance_scale=first.guidance_scale[-1:])
    jax.tree.map(np.testing.assert_array_equal, last, second)
    other = drawing.draw(pipe, num_images=2, seed=9)
    assert [picture.info[DRAWN]["seed"] for picture in other] == [9, 9]


def test_drawn_again_bit_for_bit(pipe: mv.Pipeline, tmp_path: Path) -> None:
    path = pipe(["in blue", mv.Image(SHADES, 0.3, [(MASK, 0.2)])], seed=7, **FEW).save(tmp_path)[0]
    again = mv.read_drawing(path).draw(pipe)[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(PIL.Image.open(path)))


def test_elements_come_back_as_they_were(asked: Asked, pipe: mv.Pipeline, tmp_path: Path) -> None:
    prompt, options = PROMPTS["pictures, regions"]
    path = pipe(prompt, **FEW, **options).save(tmp_path)[0]
    text, image, same = mv.read_drawing(path).prompt.elements
    assert text == mv.Text("in blue") and image.weight == 0.3
    (box, twice), (mask, fifth) = image.regions
    assert (box, twice, fifth) == ((0, 0, 0.5, 1), 2.0, 0.2)
    np.testing.assert_array_equal(mask, MASK)
    np.testing.assert_array_equal(np.asarray(image.image), SHADES)
    assert same.image is image.image  # kept once


def test_many_prompts_say_it_too(pipe: mv.Pipeline) -> None:
    asked = {
        "prompt": ["a red hat", SHADES],
        "seed": 3,
        "num_images": 2,
        "init_image": SHADES,
        "strength": 0.5,
    }
    (request,) = read_given([asked], mv.SamplingSettings(), None, 1)
    picture = PIL.Image.new("RGB", (8, 8))
    picture.info.update(request.note(1, pipe.loaded))
    drawing = mv.read_drawing(picture)
    assert (drawing.settings.seed, drawing.index, drawing.settings.strength) == (3, 1, 0.5)
    assert drawing.prompt.elements[1].image is SHADES and drawing.init_images[0] is SHADES


def test_files_are_read_where_they_are_the_same_still(
    asked: Asked, pipe: mv.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one is kept by its digest alone: without it, one sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "KEPT_BYTES", 100)
    photo(Path("a.png"))
    path = pipe(["in blue", Path("a.png")], **FEW).save("out")[0]
    there, unread = mv.read_drawing(path, root="."), mv.read_drawing(path)
    assert there.prompt.elements[1].path == "a.png"
    there.draw(pipe)
    jax.tree.map(np.testing.assert_array_equal, *asked)
    photo(Path("a.png"), SHADES[::-1])
    for drawing in (unread, mv.read_drawing(path, root=".")):
        assert drawing.prompt.elements[0] == mv.Text("in blue")
        with pytest.raises(mv.UserError, match=r"the picture 'a.png' that this was drawn from is not kept"):
            drawing.draw(pipe)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [RNG.integers(0, 255, (30, 30, 3), np.uint8) for _ in range(3)]
    monkeypatch.setattr(inputs, "KEPT_TOTAL", 6000)
    entries = inputs.Inputs(noise).entries
    assert ["png" in entry for entry in entries] == [True, True, False]
    monkeypatch.setattr(inputs, "KEPT_PIXELS", 800)
    assert inputs.Inputs(noise).entries == [{}, {}, {}]
    assert inputs.Inputs([MASK], whole=False).entries[0].keys() == {"mask", "data"}


GOOD: dict[str, Any] = {"prompt": [{"text": "a cat"}], "negative": [], "steps": 2, "seed": 1, "index": 0}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "no single picture that mvader drew"),
    ({"Software": "mvader-jax", "prompt": "[]"}, "an earlier version wrote it"),
    ({DRAWN: "{"}, "no JSON"),
    ({DRAWN: "[" * 100_000}, "no JSON"),
    ({DRAWN: "1"}, "no JSON object"),
    ({DRAWN: " " * (1 << 20) + "{}"}, "the limit is 1,048,576"),
    ({DRAWN: {**GOOD, "steps": "many"}}, "steps"),
    ({DRAWN: {**GOOD, "steps": 10**9}}, "1 to 1000"),
    ({DRAWN: {**GOOD, "seed": -1}}, "seed"),
    ({DRAWN: {**GOOD, "index": [1]}}, "index"),
    ({DRAWN: {**GOOD, "site": {"a": 1}}}, "site"),
    ({DRAWN: {**GOOD, "bundle": 3}}, "bundle"),
    ({DRAWN: {**GOOD, "prompt": 3}}, "prompt"),
    ({DRAWN: {**GOOD, "prompt": [{"text": 3}]}}, "text element holds a int"),
    ({DRAWN: {**GOOD, "prompt": [{"text": "a", "weight": [1]}]}}, "weight"),
    ({DRAWN: {**GOOD, "prompt": [{"image": "/etc/passwd"}]}}, "more images and masks"),
    ({DRAWN: {**GOOD, "decoder_factors": {"a": 1}}}, "decoder factors"),
    ({DRAWN: {**GOOD, "negative_options": {"elements": []}}}, "negative_options"),
    ({DRAWN: {**GOOD, "init_image": ["a.png"]}}, "other pictures than it holds"),
    ({DRAWN: GOOD, INPUTS: [{"png": "AAAA"}]}, "damaged"),
    ({DRAWN: GOOD, INPUTS: [{"same": 0}]}, "damaged"),
    ({DRAWN: GOOD, INPUTS: {"png": 1}}, "damaged"),
    ({DRAWN: GOOD, INPUTS: [{"mask": [1 << 20, 1 << 20], "data": ""}]}, "mask"),
    ({DRAWN: GOOD, INPUTS: [{"mask": "ab", "data": "AAAA"}]}, "mask"),
    ({DRAWN: GOOD, INPUTS: [{"mask": [2, 2]}]}, "mask"),
]


@pytest.mark.parametrize(("chunks", "message"), BAD, ids=range(len(BAD)))
def test_what_lies_is_one_sentence(tmp_path: Path, chunks: dict[str, Any], message: str) -> None:
    path = png(tmp_path / "a.png", **chunks)
    with pytest.raises(mv.UserError, match=message) as said:
        mv.read_drawing(path, root=tmp_path)
    assert "a.png" in str(said.value) and "\n" not in str(said.value)
    with pytest.raises(mv.UserError):
        mv.read_drawing(path.read_bytes())


def test_no_file_that_a_picture_names_is_opened(tmp_path: Path) -> None:
    """Not without a root; with one, where its digest is known: whoever made the picture had the file already."""
    secret = photo(tmp_path / "secret.png")
    size = secret.stat().st_size
    for digest in ("00", inputs.file_digest(secret)):
        entry = {"name": str(secret), "bytes": size, "digest": digest}
        record = {**GOOD, "prompt": [{"image": str(secret)}]}
        path = png(tmp_path / "a.png", **{DRAWN: record, INPUTS: [entry]})
        assert mv.read_drawing(path).prompt.elements[0].path is None
        found = mv.read_drawing(path, root="/nowhere").prompt.elements[0].path
        assert found == (str(secret) if digest != "00" else None)


def test_other_files_and_types_are_one_sentence(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(photo(tmp_path / "c.png").read_bytes()[:60])
    big = PngInfo()
    big.add_text(DRAWN, "a" * (3 << 20), zip=True)
    PIL.Image.fromarray(SHADES).save(tmp_path / "d.png", pnginfo=big)
    for name in ("a.jpg", "b.png", "d.png", "nowhere.png", "."):
        with pytest.raises(mv.UserError, match=r"not a PNG that can be read|does not say how"):
            mv.read_drawing(tmp_path / name)
    for other in (3, None, [tmp_path]):
        with pytest.raises(mv.UserError, match="expected a PNG's path or bytes"):
            mv.read_drawing(other)  # type: ignore[arg-type]


def test_a_drawing_is_a_value() -> None:
    drawing = mv.Drawing(mv.Prompt.of("a cat"), mv.SamplingSettings(steps=3))
    assert dataclasses.replace(drawing, index=4).recorded["steps"] == 3
