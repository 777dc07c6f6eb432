"""The one value of sampling settings: its checks, and that every way in takes it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
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
from mvader_jax.sampling.batch.requests import fingerprint, read_requests
from mvader_jax.sampling.generate import generate
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import (
    NAMES,
    Changes,
    SamplingSettings,
    StaticSettings,
    image_count,
    image_size,
)
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
        ({"eta": 0.5, "sampler": "plms"}, "the sampler plms takes none; those that do: ddim"),
        ({"guidance_interval": "5,0.3"}, "guidance_interval is 5.0,0.3; accepted: LOW,HIGH in sigma"),
        ({"guidance_interval": "0.3"}, "guidance_interval is 0.3; accepted: LOW,HIGH"),
        ({"guidance_interval": "a,b"}, "guidance_interval is a,b; accepted: LOW,HIGH"),
        ({"guidance_interval": (float("nan"), 1.0)}, "guidance_interval is nan,1.0"),
        ({"guidance_interval": 3}, "guidance_interval is 3; accepted: LOW,HIGH"),
        ({"reuse": 0}, "reuse is 0; accepted: 1 to 1000"),
        ({"reuse": 11, "steps": 10}, "reuse is 11, but there are 10 steps; accepted: 1 to 10"),
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
        "sampler": "ddim",
        "site": "both",
        "balance": False,
        "negative_strength": 1.0,
    }
    odd = SamplingSettings(height=64, eta=0.5, sampler="ddim").recorded()
    assert (odd["height"], odd["eta"]) == (64, 0.5) and "width" not in odd


def test_what_is_compiled_for() -> None:
    settings = SamplingSettings(steps=10, strength=0.4, height=32, seed=7, guidance_scale=2.0)
    assert settings.static(micro.MODEL) == StaticSettings("ddim", 10, (4, 8))
    # Every strength is of one program; without one it is 0.6.
    assert settings.static(micro.MODEL, from_image=True) == StaticSettings("ddim", 10, (4, 8))
    assert settings.start() == 6 and SamplingSettings(steps=10).start() == 4
    assert settings.static(micro.MODEL) == settings.changed(seed=8, guidance_scale=3.0).static(micro.MODEL)
    assert image_size(micro.MODEL) == (64, 64)
    saving = settings.changed(guidance_interval="0.3,5", reuse=2)
    assert saving.static(micro.MODEL) == StaticSettings("ddim", 10, (4, 8), 0, 0.0, (0.3, 5.0), 2)
    assert saving.recorded()["guidance_interval"] == [0.3, 5.0] and saving.recorded()["reuse"] == 2
    with pytest.raises(UserError, match="20,30 holds none of the steps, whose sigma"):
        settings.changed(guidance_interval=(20, 30)).static(micro.MODEL)
    with pytest.raises(UserError, match="height is 65; accepted are positive multiples of 16"):
        image_size(micro.MODEL, 65)


def test_every_way_in_has_the_same_defaults(tmp_path: Path) -> None:
    for command in (sample, figure, evaluate, demo):
        for name, parameter in inspect.signature(command).parameters.items():
            own = getattr(SamplingSettings, name, None)
            if name in NAMES and None not in (own, parameter.default) and name != "strength":
                assert SamplingSettings(**{name: parameter.default}) == SamplingSettings(), (command, name)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "steps": 3, "width": 64}\n')
    (first, second), _ = read_requests(tmp_path / "p.jsonl")
    assert first.settings == SamplingSettings()
    assert second.settings == SamplingSettings(steps=3, width=64)
    for function in (generate, Pipeline.__call__, Pipeline.generate, Pipeline.batch):
        assert not set(inspect.signature(function).parameters) & set(NAMES)


class Asked(Exception):
    pass


def test_the_pipeline_takes_them_whole_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(micro.bundle())
    seen: list[Any] = []

    def generate(draws: Any, static: StaticSettings, watch: Any) -> Any:
        assert watch is None
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
    assert seen[0][1] == seen[1][1] == StaticSettings("ddim", 3, (8, 8))
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


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (7, 7),
        ("7", 7),
        ("0:4", (0, 1, 2, 3)),
        (" 0, 3 ,7", (0, 3, 7)),
        ("5:7,1", (5, 6, 1)),
        (range(3), (0, 1, 2)),
        ([9], (9,)),
        (np.array([4, 2]), (4, 2)),
        (np.int64(3), 3),
    ],
)
def test_seeds_as_people_write_them(given: Any, seeds: Any) -> None:
    assert SamplingSettings(seed=given).seed == seeds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0:", "seed is '0:'; accepted: a number of 0 to 4294967295, a range such as 0:16"),
        ("", "seed is ''"),
        ("1.5", "seed is '1.5'"),
        ("-1", "seed is -1; accepted: 0 to 4294967295"),
        ("-1:3", "seed is -1"),
        ("4:4", "seed has 0 seeds"),
        ([], "seed has 0 seeds"),
        ("0:4294967296", "seed has 4294967296 seeds; accepted: 1 to 1000000"),
        ([0, 2**32], "seed is 4294967296; accepted: 0 to 4294967295"),
        ([0.5], "seed is 0.5"),
        (1.5, "seed is 1.5"),
        (True, "seed is True"),
        ({"a": 1}, "seed is"),
        ({"a"}, "seed is 'a'"),
    ],
)
def test_seeds_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        SamplingSettings(seed=given)


def test_a_seed_s_picture_is_the_same_whatever_is_drawn_beside_it() -> None:
    """A range draws number 0 of each seed, num_images numbers 0, 1, ... of it; sizes share programs."""
    pipe = Pipeline(micro.bundle(micro.NANO))

    def drawn(**options: Any) -> tuple[np.ndarray, list[tuple[int, int]]]:
        pictures = pipe("a red circle", steps=2, **options)
        made = [picture.info["mvader"] for picture in pictures]
        return np.stack(pictures), [(one["seed"], one["index"]) for one in made]

    eight, named = drawn(seed=range(8))
    assert named == [(seed, 0) for seed in range(8)]
    five, named = drawn(seed=[6, 1, 3, 0, 7])
    assert named == [(6, 0), (1, 0), (3, 0), (0, 0), (7, 0)]
    np.testing.assert_array_equal(five, eight[[6, 1, 3, 0, 7]])
    both, named = drawn(seed="1,6", num_images=3)
    assert named == [(1, 0), (1, 1), (1, 2), (6, 0), (6, 1), (6, 2)]
    np.testing.assert_array_equal(both[[0, 3]], eight[[1, 6]])
    seven, named = drawn(seed=1, num_images=7)
    assert named == [(1, index) for index in range(7)]
    np.testing.assert_array_equal(seven[:3], both[:3])
    assert pipe.compiled == 1
    np.testing.assert_array_equal(drawn(seed=1, num_images=3)[0], drawn(seed=1, num_images=4)[0][:3])
    assert pipe.compiled == 2
    assert [pipe.placement.rounded(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [
        1,
        2,
        4,
        4,
        8,
        8,
        16,
        16,
        24,
    ]
    with pytest.raises(UserError, match="num_images is 2000000"):
        pipe("a", seed=range(1_000_000), num_images=2)


def test_seeds_of_a_line_of_prompts(tmp_path: Path) -> None:
    """Names count on; a picture is there again only where its own seed and index are the same."""

    def read(*lines: str) -> list[Any]:
        (tmp_path / "p.jsonl").write_text("\n".join(lines))
        requests, problems = read_requests(tmp_path / "p.jsonl", num_images=2)
        assert not problems
        return requests

    one, several = read('{"prompt": "x", "seed": 5}', '{"prompt": "x", "seed": "4:6", "num_images": 3}')
    assert one.numbered == [(5, 0), (5, 1)] and one.file(1) == "000001-001.png"
    assert several.numbered == [(4, 0), (4, 1), (4, 2), (5, 0), (5, 1), (5, 2)] and several.count == 6
    assert (several.row(4)["seed"], several.row(4)["index"], several.row(4)["file"]) == (
        5,
        1,
        "000002-004.png",
    )
    marks = [fingerprint(several.shaped_by(k)) for k in range(6)]
    assert len(set(marks)) == 4  # of the numbers 0, 1, 2 of seed 4 the file's name tells which
    assert fingerprint(one.shaped_by(1)) == fingerprint(one.recorded)
    two, _ = read('{"prompt": "x", "seed": [4, 5]}', '{"prompt": "x"}')
    # Number 3 of the file was seed 5's index 0; now it is its index 1.
    assert two.numbered[3] == (5, 1) and fingerprint(two.shaped_by(3)) != marks[3]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "seed": "3:"}\n{"prompt": "x", "seed": [0.5]}')
    _, problems = read_requests(tmp_path / "p.jsonl")
    assert ["seed is" in problem.reason for problem in problems] == [True, True]


def test_a_call_is_typed_with_every_setting() -> None:
    assert set(Changes.__annotations__) == {field.name for field in dataclasses.fields(SamplingSettings)}
