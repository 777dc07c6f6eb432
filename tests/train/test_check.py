"""Settings that would do nothing are refused before anything is loaded, by a run and by a plan alike."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import micro
import pytest

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Scenes
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.program import train_program
from mvader_jax.train.check import check_stage
from mvader_jax.train.config import Judges, load_config
from mvader_jax.train.objectives import Autoencoding, Captioning, Contrastive, Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.run import build_run
from mvader_jax.train.samples import held_out

CONFIGS = Path(__file__).parents[2] / "configs"
CASES: list[tuple[dict[str, Any], str]] = [
    ({"groups": {}}, "the stage names no groups of parameters: nothing would train"),
    ({"sample_prompts": ("a cat",)}, "sample_prompts are drawn every sample_every steps, which is 0"),
    (
        {"objective": Captioning(), "sample_every": 5},
        "sample_every is 5, but the captioning objective draws nothing",
    ),
    (
        {"objective": Autoencoding(), "sample_every": 5, "sample_prompts": ("a cat",)},
        "sample_prompts do nothing for the vae objective",
    ),
    ({"judges": Judges(clip="x")}, "judges do nothing without validate_with"),
    (
        {"validate_with": ("clip",), "judges": Judges(clip="x", inception="y")},
        "judges.inception does nothing: validate_with names no score that looks with it",
    ),
    ({"validate_with": ("fid", "fid")}, "validate_with names 'fid' twice; name it once"),
    ({"validate_with": ("fidd",)}, "validate_with names 'fidd'; accepted: fid, kid, cmmd, clip, clip-image"),
    (
        {"validate_with": ("clip", "fid"), "judges": Judges(clip="x")},
        "validate_with names 'fid', which needs inception's weights: set judges.inception",
    ),
    (
        {"objective": Autoencoding(), "validate_with": ("fid",), "judges": Judges(inception="x")},
        "scores pictures of prompts, and the vae objective draws none",
    ),
    ({"objective": Autoencoding(), "remat": "blocks"}, "remat does nothing for the vae objective"),
    ({"objective": Contrastive(), "accumulate": 2}, "it cannot accumulate microbatches"),
    ({"optimizer": OptimizerConfig(decay_steps=9)}, "optimizer.decay_steps is 9, but .* nothing decays"),
    ({"optimizer": OptimizerConfig(final_fraction=0.5)}, "optimizer.final_fraction is 0.5, but"),
    (
        {"objective": Diffusion(interleaved=("a.jsonl",))},
        "objective.interleaved is set, but p_interleaved is 0",
    ),
    ({"objective": Diffusion(interleaved_images=3)}, "objective.interleaved_images is set, but"),
    ({"objective": Diffusion(interleaved_length=30)}, "objective.interleaved_length is set, but"),
    (
        {"objective": Captioning(images=False), "data": DataConfig(flip=0.5)},
        "images=False reads captions alone",
    ),
    ({"objective": Contrastive(), "data": DataConfig(precomputed=("x",))}, "reads no precomputed latents"),
    ({"objective": Autoencoding(), "data": DataConfig(precomputed=("x",))}, "reads no precomputed latents"),
    (
        {"objective": Contrastive(), "data": DataConfig(aspect_buckets=((8, 8),))},
        "aspect_buckets do nothing for the contrastive objective",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=lambda case: str(case)[:60])
def test_a_setting_that_does_nothing_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = micro.nano_config()
    stage = dataclasses.replace(config.stages["diffusion"], **changes)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=message):
        build_run(config, stage, tmp_path, mesh)
    with pytest.raises(UserError, match=message):
        train_program(config, stage, mesh)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_configs_say_nothing_in_vain(path: Path) -> None:
    for stage in load_config(path).stages.values():
        check_stage(stage)


def test_held_out_pictures_are_as_large_as_the_model_draws() -> None:
    stage = micro.nano_config().stages["diffusion"]
    stage = dataclasses.replace(stage, data=DataConfig(Scenes(9)))
    (record,) = itertools.islice(held_out(stage, micro.NANO), 1)
    assert record["image"].shape == (8, 8, 3)
