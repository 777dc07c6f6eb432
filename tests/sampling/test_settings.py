"""The one value of sampling settings: its checks, and that every way in takes it."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.cli.demo import demo
from mvader_jax.cli.evaluate import evaluate
from mvader_jax.cli.figure import figure
from mvader_jax.cli.sample import sample
from mvader_jax.errors import UserError
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.generate import generate
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import NAMES, SamplingSettings, StaticSettings, image_count, image_size
from mvader_jax.sampling.tasks import img2img, interpolation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; accepted: 1 to 1000"),
        ({"steps": 1.5}, "steps is 1.5; expected int"),
        ({"steps": True}, "steps is True; expected int"),
        ({"seed": 2**32}, "seed is 4294967296; accepted: 0 to 4294967295"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": 1e39}, "guidance_scale is 1e+39"),
        ({"guidance_scale": 10**400}, "guidance_scale is 1"),
        ({"negative_strength": -1}, "negative_strength is -1"),
        ({"negative_strength": 1e39}, "negative_strength is 1e+39"),
        ({"sampler": "magic"}, "the sampler is 'magic'; accepted: plms, "),
        ({"site": "nowhere"}, "site is 'nowhere'"),
        ({"strength": 1.5}, "strength is 1.5; accepted: 0 to 1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"eta": 0.5}, "the sampler plms adds no noise; those that do: ddim"),
        ({"height": 0}, "height is 0"),
        ({"step": 3}, "unknown setting 'step'; did you mean 'steps'?"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SamplingSettings().changed(**changes)
    said = str(caught.value)
    assert message in said and "\n" not in said and len(said) < 250


def test_numbers_of_numpy_are_numbers() -> None:
    settings = SamplingSettings(steps=np.int64(3), guidance_scale=np.float32(2), seed=2**32 - 1)  # type: ignore
    assert settings == SamplingSettings(steps=3, guidance_scale=2.0, seed=2**32 - 1)
    assert image_count(np.int32(4)) == 4
    for bad in (0, -1, 1.5, True, 10**7):
        with pytest.raises(UserError, match="num_images is"):
            image_count(bad)


def test_what_is_recorded_is_what_was_before_and_what_is_not_the_default() -> None:
    assert SamplingSettings().recorded() == {
        "seed": 0,
        "guidance_scale": 8.0,
        "steps": 50,
        "sampler": "plms",
        "site": "both",
        "balance": False,
        "negative_strength": 1.0,
    }
    odd = SamplingSettings(height=64, eta=0.5, sampler="ddim").recorded()
    assert (odd["height"], odd["eta"]) == (64, 0.5) and "width" not in odd


def test_what_is_compiled_for() -> None:
    settings = SamplingSettings(steps=10, strength=0.4, height=32, seed=7, guidance_scale=2.0)
    assert settings.static(micro.MODEL) == StaticSettings("plms", 10, (4, 8))
    # Every strength is of one program; without one it is 0.6.
    assert settings.static(micro.MODEL, from_image=True) == StaticSettings("plms", 10, (4, 8))
    assert settings.start() == 6 and SamplingSettings(steps=10).start() == 4
    assert settings.static(micro.MODEL) == settings.changed(seed=8, guidance_scale=3.0).static(micro.MODEL)
    assert image_size(micro.MODEL) == (64, 64)
    with pytest.raises(UserError, match="height is 65; accepted are positive multiples of 16"):
        image_size(micro.MODEL, 65)


def test_every_way_in_has_the_same_defaults(tmp_path: Path) -> None:
    for command in (sample, figure, evaluate, demo):
        for name, parameter in inspect.signature(command).parameters.items():
            own = getattr(SamplingSettings, name, None)
            if name in NAMES and own is not None and name != "strength":
                assert parameter.default == own, (command, name)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "steps": 3, "width": 64}\n')
    (first, second), _ = read_requests(tmp_path / "p.jsonl")
    assert first.settings == SamplingSettings()
    assert second.settings == SamplingSettings(steps=3, width=64)
    for function in (generate, Pipeline.__call__, Pipeline.generate):
        assert len(inspect.signature(function).parameters) <= 9


class Asked(Exception):
    pass


def test_the_pipeline_takes_them_whole_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(micro.bundle())
    seen: list[Any] = []

    def generate(draws: Any, static: StaticSettings) -> Any:
        seen.append((draws, static))
        raise Asked

    monkeypatch.setattr(pipe, "generate", generate)
    settings = SamplingSettings(steps=3, seed=5)
    picture = np.zeros((64, 64, 3), np.uint8)
    for ask in (
        lambda: pipe("a", settings, num_images=2, guidance_scale=2.0),
        lambda: pipe("a", steps=3, seed=5, num_images=2, guidance_scale=2.0),
    ):
        with pytest.raises(Asked):
            ask()
    assert seen[0][1] == seen[1][1] == StaticSettings("plms", 3, (8, 8))
    for draws, _ in seen:
        assert draws.seeds.tolist() == [5, 5] and draws.indices.tolist() == [0, 1]
        assert draws.guidance_scale.tolist() == [2.0, 2.0]
    for name in ("init_image", "init"):
        with pytest.raises(Asked):
            pipe("a", steps=4, strength=0.5, **{name: picture})
        assert seen[-1][0].start == 2 and seen[-1][0].init.shares.tolist() == [[1.0]]
    for task in (img2img, functools.partial(interpolation, second=picture)):
        for options, start in (({}, 4), ({"settings": SamplingSettings(steps=10, strength=0.1)}, 9)):
            with pytest.raises(Asked):
                task(pipe, picture, **{"steps": 10, **options})
            assert seen[-1][0].start == start
    # What would change nothing is refused.
    for options, message in (
        ({"strength": 0.5}, "belong to an init_image"),
        ({"shares": [1.0]}, "belong to an init_image"),
        ({"negative_strength": 0.5}, "there is no negative prompt"),
    ):
        with pytest.raises(UserError, match=message):
            pipe("a", **options)
    assert mv.SamplingSettings is SamplingSettings
