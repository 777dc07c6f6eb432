"""A run and its plan are one assembly: the same state, the same batch, the same step, whatever the stage asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import micro
import pytest

from mvader_jax.parallel.mesh import MeshConfig, make_global, make_mesh
from mvader_jax.plan.program import train_program
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.run import build_run, data_loader


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    for stage in ("vae", "language", "captioning", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle(micro.NANO))
    return path


def seen(tree: Any) -> Any:
    """Shapes, dtypes and shardings, beside the tree itself."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


def check(config: TrainConfig, stage: Stage, workdir: Path, mesh: Any) -> None:
    run = build_run(config, stage, workdir, mesh)
    batch = make_global(next(data_loader(run, "train")), mesh)
    model = run.start.bundle.model
    program = train_program(dataclasses.replace(config, model=model), stage, mesh)
    state, planned = program.arguments
    assert seen(state) == seen(run.state)
    assert seen(planned) == seen(batch)
    with jax.set_mesh(mesh):
        expected = run.step.trace(run.state, batch).jaxpr  # type: ignore[attr-defined]
        found = jax.jit(program.function, **program.jit_options).trace(*program.arguments).jaxpr
    assert str(found) == str(expected)


WHITE = OptimizerConfig(muon=("cross_attention",), whiten=("cross_attention",))
CASES = {
    "vae": {"max_loss_ratio": 3.0},
    "language": {"row_groups": 8, "accumulate": 2, "remat": "blocks"},
    "captioning": {"frozen_dtype": "bfloat16", "dtype": "bfloat16"},
    "contrastive": {
        "max_loss_ratio": 3.0,
        "optimizer": OptimizerConfig(ema_decay=0.0, clip_norm=0.0),
        "frozen_dtype": "int8",
    },
    "diffusion": {"row_groups": 4, "max_loss_ratio": 2.0, "optimizer": WHITE, "frozen_dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_plan_is_of_the_very_step_that_runs(
    name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvader_jax.train.start.TOKENIZER_CAPTIONS", 300)
    config = micro.nano_config(**CASES[name])
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    check(config, config.stage(name), workdir, mesh)


def test_interleaved_prompts_and_pictures_while_it_trains_are_planned_too(workdir: Path) -> None:
    config = micro.nano_config(batch_size=16, sample_every=2)
    stage = dataclasses.replace(
        config.stage("diffusion"), objective=Diffusion(caption_length=24, p_interleaved=0.5)
    )
    check(config, stage, workdir, make_mesh(MeshConfig(data=2), jax.devices()[:2]))
