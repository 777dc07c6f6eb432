"""`Pipeline.batch`: many prompts of Python in one call are the pictures of one call each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.images.png import save_png
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.pipeline import Pipeline

A, B = render(scene_at(0, 3)), render(scene_at(0, 4))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle(micro.NANO))


def array(pictures: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def test_they_are_the_pictures_of_one_call_each(
    pipe: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_png(tmp_path / "a.png", A)
    prompts: list[Any] = [
        "a red circle",
        [("in blue", 0.5), (A, 0.3)],
        {"prompt": [B, mv.Text("in red")], "seed": [3, 7], "num_images": 1},
        {
            "prompt": mv.Prompt.of(tmp_path / "a.png", site="decoder"),
            "negative": "a cross",
            "guidance_scale": 2,
        },
        {"prompt": [{"text": "in blue"}, {"image": str(tmp_path / "a.png"), "weight": 0.3}], "seed": 1},
        {"prompt": "in green", "init_image": A, "strength": 0.5},
    ]
    asked: dict[str, Any] = {"steps": 2, "num_images": 2}
    alone = [
        pipe(prompts[0], **asked),
        pipe(prompts[1], **asked),
        pipe(prompts[2]["prompt"], steps=2, seed=[3, 7]),
        pipe(prompts[3]["prompt"], negative="a cross", guidance_scale=2, **asked),
        pipe(["in blue", mv.Image(A, 0.3)], seed=1, **asked),
        pipe("in green", init_image=A, strength=0.5, **asked),
    ]
    together = pipe.batch(prompts, batch_size=4, progress=True, **asked)
    assert [repr(one) for one in together] == ["<2 pictures of 8 x 8>"] * 6
    for drawn, expected in zip(together, alone, strict=True):
        assert np.mean(np.abs(array(drawn) - array(expected)) <= 1) >= 0.995
        for ours, theirs in zip(drawn, expected, strict=True):
            made, wanted = ours.info["mvader"], theirs.info["mvader"]
            assert {k: v for k, v in made.items() if k != "prompt"} == {
                k: v for k, v in wanted.items() if k != "prompt"
            }
    told = capsys.readouterr().err.strip().split("\r")
    assert told[-1].startswith("drawing: 12 of 12 pictures")
    on_mesh = Pipeline(pipe.bundle, mesh=make_mesh(MeshConfig(data=2), jax.devices()[:2]))
    assert np.abs(array(on_mesh.batch(["a red circle"], **asked)[0]) - array(alone[0])).max() <= 1


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a", 5], {}, "prompt 2: a prompt holds 5"),
        (["a", None], {}, "prompt 2: a prompt holds None"),
        ([{"seed": 3}], {}, "prompt 1: it has no 'prompt'"),
        ([{"prompt": "a", "sed": 3}], {}, "prompt 1: unknown key 'sed'; did you mean 'seed'"),
        ([{"prompt": "a", "steps": 2.5}], {}, "prompt 1: steps is 2.5; expected int"),
        ([{"prompt": "a", "init_image": 5}], {}, "prompt 1: a picture is of type int"),
        ([{"prompt": "a", "strength": 0.5}], {}, "prompt 1: strength belongs to an init_image"),
        (["a"], {"strength": 0.5}, "prompt 1: strength belongs to an init_image"),
        (["a"], {"negative_strength": 0.5}, "prompt 1: negative_strength is 0.5, but there is no negative"),
        (["a"], {"batch_size": 0}, "batch_size is 0; accepted: 1 to"),
        (["a", [mv.Image("no.png")]], {"steps": 2}, "prompt 2: the image 'no.png' does not exist"),
    ],
)
def test_mistakes_name_the_prompt(
    pipe: Pipeline, prompts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(mv.UserError) as caught:
        pipe.batch(prompts, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_prompts_are_no_pictures(pipe: Pipeline) -> None:
    assert pipe.batch([]) == []


def test_what_is_not_finite_is_named(pipe: Pipeline) -> None:
    prompts = ["a red circle", {"prompt": "a cross", "guidance_scale": 1e38}]
    with pytest.raises(
        mv.NotFiniteError, match="pictures 0 of prompt 2, 1 of prompt 2: NaN or infinity"
    ) as caught:
        pipe.batch(prompts, steps=2, num_images=2)
    assert sorted(caught.value.pictures) == [(1, 0), (1, 1)]
