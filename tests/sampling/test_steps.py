"""A drawing that is watched: the same pictures, told of step by step, ended where the watcher says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.steps import Step

PICTURE = np.full((8, 8, 3), 90, np.uint8)
FROM_PICTURE: dict[str, Any] = {"init_image": PICTURE, "strength": 0.5, "sampler": "ddim", "eta": 0.5}
SAVED: dict[str, Any] = {"guidance_interval": "0.5,3", "reuse": 2}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle(micro.NANO))


def array(pictures: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"sampler": "plms"}, [2, 4, 6, 7]),
        (FROM_PICTURE, [2, 3]),
        ({**FROM_PICTURE, **SAVED, "negative_strength": 0.5}, [2, 3]),
    ],
)
def test_watching_changes_no_picture(pipe: Pipeline, options: dict[str, Any], numbers: list[int]) -> None:
    """PLMS calls the model once more than its steps; from a picture at strength 0.5 half of the steps are taken."""
    before = pipe.compiled
    steps: list[Step] = []
    asked = {"steps": 6, "num_images": 3, "negative": "a cross", **options}
    watched = pipe("a red circle", callback=steps.append, callback_every=2, **asked)
    assert pipe.compiled == before
    np.testing.assert_array_equal(array(watched), array(pipe("a red circle", **asked)))
    assert [step.number for step in steps] == numbers and {step.total for step in steps} == {numbers[-1]}
    assert repr(steps[0]) == f"Step(2 of {numbers[-1]})"
    previews = [array(step.preview) for step in steps]
    assert previews[0].shape == (3, 8, 8, 3) and isinstance(steps[0].preview, mv.Pictures)
    distance = [np.abs(preview - array(watched)).mean() for preview in previews]
    assert distance[-1] < distance[0] and distance[-1] < 5


def test_a_preview_of_a_model_that_predicts_velocity() -> None:
    schedule = dataclasses.replace(micro.NANO.require(ScheduleConfig), prediction_type="v_prediction")
    pipe = Pipeline(micro.bundle(dataclasses.replace(micro.NANO, schedule=schedule)))
    steps: list[Step] = []
    drawn = pipe("a red circle", steps=2, sampler="ddim", callback=steps.append, callback_every=2)
    assert pipe._steps._look._cache_size() == 0  # what nobody looks at is not decoded
    assert np.abs(array(steps[-1].preview) - array(drawn)).mean() < 5
    assert pipe._steps._look._cache_size() == 1


def test_any_number_of_steps_together_is_one_program(pipe: Pipeline) -> None:
    def draw(every: int) -> list[int]:
        numbers: list[int] = []
        pipe("a red circle", steps=7, callback=lambda step: numbers.append(step.number), callback_every=every)
        return numbers

    assert draw(1) == [1, 2, 3, 4, 5, 6, 7]
    programs = pipe._steps._go_on._cache_size()
    assert draw(100) == [7] and draw(3) == [3, 6, 7]
    assert pipe._steps._go_on._cache_size() == programs


def test_the_watcher_ends_it(pipe: Pipeline) -> None:
    seen: list[int] = []

    def at_third(step: Step) -> bool | None:
        seen.append(step.number)
        return None if step.number < 2 else step.number != 3

    with pytest.raises(mv.Cancelled, match="cancelled after step 3 of 7") as caught:
        pipe("a red circle", steps=7, callback=at_third)
    assert seen == [1, 2, 3] and len(caught.value.step.preview) == 1
    assert pipe("a red circle", steps=6, callback=lambda step: 0) is not None

    def broken(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a red circle", steps=6, callback=broken)


def test_progress_is_a_line_on_standard_error(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe("a red circle", steps=7, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.endswith("\n") and shown.err.count("\n") == 1
    lines = shown.err.strip().split("\r")
    assert lines[0].startswith("drawing: 1 of 7 steps, ") and lines[-1].startswith(
        "drawing: 7 of 7 steps, 0 s left"
    )


def test_a_sampler_that_shows_no_steps(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "own", dataclasses.replace(SAMPLERS["euler"], walks=False))
    with pytest.raises(mv.UserError, match="the sampler own cannot be watched; those that can: plms, "):
        pipe("a red circle", sampler="own", progress=True)
    with pytest.raises(
        mv.UserError, match="the sampler own reuses nothing between calls; those that can: plms, "
    ):
        pipe("a red circle", sampler="own", reuse=2)


@pytest.mark.parametrize("options", [{}, SAVED])
def test_on_a_mesh_the_same(pipe: Pipeline, options: dict[str, Any]) -> None:
    """Three pictures over two devices, the parameters over two: filled up to four, of which three are shown."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    on_mesh = Pipeline(pipe.bundle, mesh=mesh)
    steps: list[Step] = []
    asked: dict[str, Any] = {"steps": 4, "num_images": 3, **options}
    drawn = on_mesh("a red circle", callback=steps.append, callback_every=3, **asked)
    np.testing.assert_array_equal(array(drawn), array(on_mesh("a red circle", **asked)))
    assert np.abs(array(drawn) - array(pipe("a red circle", **asked))).max() <= 1
    assert [len(step.preview) for step in steps] == [3, 3]
    # The state comes from one step as it goes into the next: one program for both.
    assert on_mesh._steps._go_on._cache_size() == 1
