"""The judge of embedded bundles: its prompts say what they should, its shares count what they should."""

import jax
import micro
import numpy as np
import pytest

from mvader_jax.data.scenes.world import render
from mvader_jax.errors import UserError
from mvader_jax.paper.curves import Curves, held_out
from mvader_jax.paper.evaluate import (
    PARTS,
    Evaluation,
    as_markdown,
    attribute_scores,
    draw,
    evaluate,
    text_prompts,
)
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import save_bundle

SETTINGS = Evaluation(count=3, batch=2, sampling=SamplingSettings(steps=1))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle())


def test_held_out_scenes_are_of_the_validation_split() -> None:
    assert all(scene.held_out for scene in held_out(20))
    assert {len(scene.objects) for scene in held_out(20, two_objects=0.0)} == {1}


def test_text_prompts_name_every_attribute() -> None:
    scenes = held_out(4)
    for scene, prompt in list(zip(scenes, text_prompts(scenes), strict=True))[::2]:
        text = prompt.elements[0].text.split()
        assert {scene.background, *(thing.color for thing in scene.objects)} <= set(text)


def test_perfect_pictures_score_one() -> None:
    scenes = held_out(10)
    assert set(attribute_scores(scenes, [render(scene) for scene in scenes]).values()) == {1.0}


def test_every_part_runs_with_one_program_a_length(pipe: Pipeline) -> None:
    seen = []
    result = evaluate(
        pipe,
        SETTINGS,
        PARTS,
        curves=Curves(thetas=(1.0, 0.0), sites=("cross_attention",)),
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    for task in ("change", "style", "pairs", "order", "three"):
        rows = result[task]["rows"]
        assert [(row["site"], row["theta"]) for row in rows] == [("any", 1.0), ("cross_attention", 0.0)]
    assert result["change"]["phrase"] == "a {color} shape" and "phrase" not in result["pairs"]
    assert list(result) == ["settings", *PARTS]
    assert ("text", 3, 3) in seen
    assert set(result["reader"].values()) == {1.0}
    assert "| cross_attention | 0 |" in as_markdown(result)
    assert "| pairs, at | theta | both | first | second | neither |" in as_markdown(result)
    # Random weights draw no scenes.
    assert np.mean(list(result["text"].values())) < 0.9


def test_balanced_weights_of_one_depend_on_the_site(pipe: Pipeline) -> None:
    result = evaluate(pipe, SETTINGS, ["change"], curves=Curves((1.0,), ("decoder", "both"), balance=True))
    rows = [(row["site"], row["theta"]) for row in result["change"]["rows"]]
    assert rows == [("decoder", 1.0), ("both", 1.0)]


def test_a_mesh_draws_the_same(pipe: Pipeline, tmp_path) -> None:
    save_bundle(tmp_path / "bundle", micro.bundle())
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    over_mesh = Pipeline.load(tmp_path / "bundle", mesh=mesh)
    parts = ["reconstruction", "text"]
    assert evaluate(over_mesh, SETTINGS, parts) == evaluate(pipe, SETTINGS, parts)
    prompts = text_prompts(held_out(2))
    one, other = (draw(each, prompts, SETTINGS).astype(int) for each in (pipe, over_mesh))
    assert np.mean(np.abs(one - other) <= 1) >= 0.999


def test_mistakes(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="unknown part 'texts'"):
        evaluate(pipe, SETTINGS, ["texts"])
    with pytest.raises(UserError, match="unknown site"):
        Curves(sites=("everywhere",))
    with pytest.raises(UserError, match="names no colour"):
        Curves(phrase="in red")
