import dataclasses
from pathlib import Path

import micro
import numpy as np
import PIL.Image

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Emoji
from mvader_jax.data.sources.base import Source
from mvader_jax.paper.demo import demo
from mvader_jax.paper.demos import DEMOS, demo_of
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.train.origin import data_in_words

TASKS = DEMOS["scenes"].tasks


def test_the_demo_draws_every_task_and_names_its_command(tmp_path) -> None:
    drawn = demo(Pipeline(micro.bundle()), tmp_path, SamplingSettings(steps=1), num_images=2)
    assert [one.task for one in drawn] == list(TASKS)
    for one in drawn:
        picture = PIL.Image.open(one.path)
        assert picture.width > 128 * 3 and picture.text["AI-generated"] == "true"
        assert one.command.startswith("mvader sample ")
    element = drawn[list(TASKS).index("element")]
    assert '"a green shape"' in element.command and "inputs/circle.png" in element.command
    style = drawn[list(TASKS).index("style")]
    assert '"a hollow shape"' in style.command and "inputs/circle.png" in style.command


def test_every_demo_has_the_same_tasks_and_the_pictures_that_they_show() -> None:
    assert set(DEMOS) <= set(Source.kinds)
    for one in DEMOS.values():
        assert tuple(one.tasks) == tuple(TASKS)
        asked = {part for parts in one.tasks.values() for part in parts}
        assert set(one.inputs) <= asked
        assert all(part in one.inputs for part in asked if part.endswith(".png"))
        for picture in one.inputs.values():
            assert picture().shape == (64, 64, 3) and picture().dtype == np.uint8


def test_a_bundle_shows_what_it_was_trained_on(tmp_path: Path) -> None:
    bundle = micro.bundle()
    assert demo_of(bundle) is DEMOS["scenes"]
    for data in (DataConfig(Emoji()), DataConfig(Emoji(), precomputed=("runs/encoded", "more"))):
        trained = {"unet": {"trained": {"stage": "interleaved", "data": data_in_words(data)}}}
        emoji = dataclasses.replace(bundle, records=trained)
        assert demo_of(emoji) is DEMOS["emoji"]
    for unknown in ("interleaved", {"stage": "diffusion", "data": "records"}):
        assert demo_of(dataclasses.replace(bundle, records={"unet": {"trained": unknown}})) is DEMOS["scenes"]
    drawn = demo(Pipeline(emoji), tmp_path, SamplingSettings(steps=1), num_images=1)
    assert "inputs/fox.png" in drawn[list(TASKS).index("variation")].command
    assert {path.name for path in (tmp_path / "inputs").iterdir()} == set(DEMOS["emoji"].inputs)
