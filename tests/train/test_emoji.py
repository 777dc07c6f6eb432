"""configs/emoji.py: every stage takes a step on a small set, and the bundle draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from emoji_like import build_set

from mvader_jax.models.components import abstract_components
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.program import train_program
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.train.config import TrainConfig, load_config
from mvader_jax.train.loop import train

CONFIGS = Path(__file__).parents[2] / "configs"


def small(name: str, path: str) -> TrainConfig:
    """A config's stages, each of one step of few samples, with the model NANO at its schedule."""
    config = load_config(CONFIGS / f"{name}.py")
    assert config.model.schedule is not None and config.model.tokenizer is not None
    model = dataclasses.replace(micro.NANO, schedule=config.model.schedule)
    stages = {}
    for stage_name, stage in config.stages.items():
        source = dataclasses.replace(stage.data.source, path=path, subjects=0)
        data = dataclasses.replace(stage.data, source=source, image_size=8, workers=0, threads=1)
        quick = {"steps": 1, "batch_size": 5, "save_every": 1, "log_every": 1, "validate_every": 100}
        stages[stage_name] = dataclasses.replace(stage, data=data, **quick)
    return dataclasses.replace(config, model=model, stages=stages)


def test_every_stage_has_a_step(tmp_path: Path) -> None:
    """Traced, not compiled: the slow test below runs them."""
    for name in ("emoji", "emoji_small"):
        config = small(name, build_set(tmp_path / name))
        for stage in config.stages.values():
            program = train_program(config, stage, make_mesh(MeshConfig(), jax.devices()[:1]))
            state, metrics = jax.eval_shape(program.function, *program.arguments)[:2]
            assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, program.arguments[0])
            assert "loss" in metrics


@pytest.mark.slow
def test_every_stage_takes_a_step_and_the_last_bundle_draws(tmp_path: Path) -> None:
    config = small("emoji", build_set(tmp_path / "emoji"))
    assert list(config.stages)[-3:] == ["diffusion", "interleaved", "distill"]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for name in config.stages:
        assert train(config, name, tmp_path / "run", mesh, quiet=True) == 0
    pipe = Pipeline.load(tmp_path / "run" / "interleaved" / "bundle")
    assert pipe.model.schedule is not None and pipe.model.schedule.prediction_type == "v_prediction"
    (picture,) = pipe("red apple as line art", steps=2, sampler="ddim")
    assert np.asarray(picture).shape == (8, 8, 3)


def test_the_model_fits_into_forty_megabytes_of_bfloat16() -> None:
    config = load_config(CONFIGS / "emoji.py")
    shapes, _ = abstract_components(
        config.model, ["decoder", "biases", "adapters", "image_encoder", "image_prefix", "unet", "vae"]
    )
    numbers = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert 10e6 < numbers < 20e6


@pytest.mark.parametrize("name", ["emoji", "emoji_small"])
def test_what_the_stages_read(name: str) -> None:
    stages = load_config(CONFIGS / f"{name}.py").stages
    languages = {stage: len(one.data.source.languages) for stage, one in stages.items()}
    assert languages == {stage: 1 if stage == "diffusion" else 5 for stage in stages}
    assert {one.data.source.subjects for one in stages.values()} == {0 if name == "emoji" else 300}
