"""The paper's tasks: the prompt each of them stands for, and the baselines' two ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata, save_png
from mvader_jax.paper.figures import FIGURES, Options, draw_figure
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.sampling.tasks import composition, element, img2img, interpolation, run_task, style, variation

A, B = render(scene_at(0, 3)), render(scene_at(0, 4))
FEW: dict[str, Any] = {"steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle())


def array(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_task_is_its_prompt(pipe: Pipeline) -> None:
    weighted = mv.Image(A, weight=0.3)
    expected = array(pipe([mv.Text("in blue"), weighted], **FEW))
    for made in (
        style(pipe, "in blue", weighted, **FEW),
        element(pipe, ["in blue"], weighted, **FEW),
        run_task("element", pipe, [weighted, mv.Text("in blue")], **FEW),
    ):
        np.testing.assert_array_equal(array(made), expected)
    np.testing.assert_array_equal(array(variation(pipe, A, **FEW)), array(pipe([A], **FEW)))
    both = array(composition(pipe, [A, B], **FEW))
    np.testing.assert_array_equal(both, array(pipe([A, B], **FEW)))
    assert not np.array_equal(both, array(composition(pipe, [B, A], **FEW)))


def test_img2img_starts_from_the_picture(pipe: Pipeline) -> None:
    """Strength 0 is the autoencoder's picture; more noise leads further away; without text, no guidance."""
    reconstruction = np.rint(np.asarray(pipe.decode(pipe.encode(A[None]))) * 255)
    still = array(img2img(pipe, A, strength=0.0, **FEW))
    assert np.abs(still - reconstruction).max() <= 1
    some = array(img2img(pipe, A, "in blue", strength=0.5, **FEW))
    more = array(img2img(pipe, A, "in blue", strength=1.0, **FEW))
    distance = [np.abs(made - reconstruction).mean() for made in (still, some, more)]
    assert distance[0] < distance[1] < distance[2]
    plain = array(img2img(pipe, A, strength=0.5, guidance_scale=1.0, **FEW))
    guided = array(img2img(pipe, A, strength=0.5, guidance_scale=8.0, **FEW))
    assert np.mean(np.abs(plain.astype(int) - guided) <= 1) >= 0.999


@pytest.mark.parametrize("sampler", ["plms", "ddim"])
def test_strengths_share_a_program(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise the pictures of programs that begin at their strength's step."""
    pipe = Pipeline(micro.bundle(micro.NANO))
    options = {"steps": 5, "sampler": sampler, "num_images": 2}

    def drawn() -> list[np.ndarray]:
        return [array(img2img(pipe, A, "in blue", strength=s, **options)) for s in (0.0, 0.4, 0.6, 1.0)]

    together = drawn()
    np.testing.assert_array_equal(array(img2img(pipe, A, "in blue", **options)), together[2])
    assert pipe.compiled == 1
    monkeypatch.setitem(SAMPLERS, sampler, dataclasses.replace(SAMPLERS[sampler], walks=False))
    np.testing.assert_array_equal(drawn(), together)
    assert pipe.compiled == 5


def test_figure_4_compiles_two_programs() -> None:
    pipe = Pipeline(micro.bundle(micro.NANO))
    draw_figure("4", pipe, options=Options(SamplingSettings(steps=2)))
    assert pipe.compiled == 2


def test_interpolation_goes_from_one_picture_to_the_other(pipe: Pipeline) -> None:
    ends = [array(interpolation(pipe, A, B, fraction=f, strength=0.5, **FEW)) for f in (0.0, 1.0)]
    for end, picture in zip(ends, (A, B), strict=True):
        alone = array(img2img(pipe, picture, strength=0.5, **FEW))
        assert np.mean(np.abs(end.astype(int) - alone) <= 1) >= 0.999
    middle = array(interpolation(pipe, A, B, strength=0.5, **FEW))
    assert not np.array_equal(middle, ends[0]) and not np.array_equal(middle, ends[1])


@pytest.mark.parametrize(
    ("task", "elements", "options", "message"),
    [
        ("painting", [mv.Text("x")], {}, "unknown task 'painting'"),
        ("variation", [mv.Image(A), mv.Text("x")], {}, "exactly 1 image and no text"),
        ("style", [mv.Image(A)], {}, "exactly 1 image and at least 1 text"),
        ("composition", [mv.Image(A)], {}, "at least 2 images and no text"),
        ("interpolation", [mv.Image(A)], {}, "exactly 2 images"),
        ("interpolation", [mv.Image(A), mv.Image(B)], {"fraction": 1.5}, "fraction is 1.5"),
        ("img2img", [mv.Image(A)], {"strength": -0.1}, "strength is -0.1"),
        ("img2img", [mv.Image(A, weight=0.3)], {}, "has a weight"),
        ("variation", [mv.Image(A)], {"strength": 0.5}, "takes no strength"),
    ],
)
def test_mistakes(
    pipe: Pipeline, task: str, elements: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_task(task, pipe, elements, **options, **FEW)


class Instant:
    """A pipeline that draws nothing but remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, SamplingSettings]] = []

    def __call__(self, prompt: Any, settings: SamplingSettings, **options: Any) -> list[Any]:
        self.asked.append((prompt, settings))
        return [np.full((64, 64, 3), 99, np.uint8)] * options.get("num_images", 1)


@pytest.mark.parametrize(
    ("name", "calls"), [("3", 1), ("4", 6), ("5", 4), ("6", 4), ("7", 2), ("9", 2), ("weights", 4)]
)
def test_figures_are_laid_out(tmp_path: Path, name: str, calls: int) -> None:
    pipe = Instant()
    options = Options(SamplingSettings(steps=7), thetas=(1.0, 0.0))
    sheet = draw_figure(name, pipe, options=options)  # type: ignore[arg-type]
    assert len(pipe.asked) == calls and all(asked.steps == 7 for _, asked in pipe.asked)
    assert sheet.width >= 2 * 128 and sheet.height >= 128
    save_png(tmp_path / "f.png", sheet, {"figure": name})
    assert read_png_metadata(tmp_path / "f.png")["figure"] == name
    if name == "5":
        assert [prompt[0].text for prompt, _ in pipe.asked] == [f"a {c} shape" for c in options.values]
    if name == "9":
        assert pipe.asked[0][0] == pipe.asked[1][0][::-1]
    if name == "weights":
        assert [[e.weight for e in prompt] for prompt, _ in pipe.asked] == [[1, 1], [1, 0], [0, 1], [0, 0]]


def test_a_figure_says_what_it_takes() -> None:
    pipe: Any = Instant()
    with pytest.raises(UserError, match="accepted: 3, 4, 5, 6, 7, 9, weights"):
        draw_figure("8", pipe)
    for name in ("4", "5", "6", "7", "9"):
        with pytest.raises(UserError, match=f"figure {name} takes {FIGURES[name].takes[:4]}"):
            draw_figure(name, pipe, [mv.Text("x"), mv.Text("y")])
    with pytest.raises(UserError, match="does not hold"):
        draw_figure("5", pipe, [mv.Text("in red"), mv.Image(A)])
