"""Every objective on every shape of mesh: the same losses, the same updates, everything large divided."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.parallel.mesh import MeshConfig, make_global, make_mesh
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.config import Group, TrainConfig
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.run import Run, build_run, data_loader
from mvader_jax.train.state import TrainState

STEPS = 20
ONE = MeshConfig()
#: (data, fsdp, tensor): (8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 4, 2); and two slices.
MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=2, fsdp=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(replica=2, fsdp=2, tensor=2),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    for stage in ("vae", "language", "captioning", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle(micro.NANO))
    return path


def config_for(stage: str, **changes: Any) -> TrainConfig:
    """The same groups of rows everywhere; an epsilon that keeps Adam from blowing up the rounding of gradients
    that are zero in theory (a bias before a norm) into whole steps."""
    changes = {"row_groups": 8, **changes}
    config = micro.nano_config(optimizer=OptimizerConfig(warmup_steps=2, eps=1e-4, ema_decay=0.99), **changes)
    captioning = config.stages["captioning"]
    groups = {**captioning.groups, "encoder": Group("image_encoder/(?!.*/(mean|var)$).*", 1e-3)}
    stages = {**config.stages, "captioning": dataclasses.replace(captioning, groups=groups)}
    return dataclasses.replace(config, stages=stages)


def trained(
    config: TrainConfig, stage: str, workdir: Path, shape: MeshConfig, steps: int = STEPS
) -> tuple[Run, TrainState, list[float]]:
    count = np.prod([getattr(shape, f.name) for f in dataclasses.fields(shape)])
    mesh = make_mesh(shape, jax.devices()[: int(count)])
    run = build_run(config, config.stage(stage), workdir, mesh)
    loader, state, losses = data_loader(run, "train"), run.state, []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = run.step(state, make_global(next(loader), mesh))
            losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return run, state, losses


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def check_divided(state: TrainState, mesh: Any, least: int) -> None:
    """Every array of at least `least` bytes is divided over fsdp and tensor; moments and average lie as their
    parameters do, bit for bit as many bytes a device."""
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for tree in (state.trainable, state.frozen, state.ema):
        for path, leaf in flatten_dict(tree, sep="/").items():
            if leaf.nbytes >= least:
                assert leaf.addressable_shards[0].data.nbytes * ways == leaf.nbytes, path
    moments = state.opt_state[1]
    for tree in (state.ema, moments.mu, moments.nu):
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        assert places == jax.tree.map(lambda leaf: leaf.sharding, state.trainable)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], start: Mapping[str, Any]) -> None:
    """Equal to a hundredth of how far the parameters have moved, leaf by leaf; and they have moved."""
    assert one.keys() == other.keys()
    moved = max(np.abs(one[path] - start[path]).max() for path in one)
    assert moved > 5e-3
    for path, value in one.items():
        np.testing.assert_allclose(other[path], value, rtol=0, atol=moved / 100, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "captioning", "contrastive", "diffusion"])
def test_twenty_steps_are_the_same_on_every_mesh(stage: str, workdir: Path) -> None:
    config = config_for(stage)
    run, state, expected = trained(config, stage, workdir, ONE)
    params, ema = flat(state.trainable), flat(state.ema)
    start = flat(build_run(config, config.stage(stage), workdir, run.mesh).state.trainable)
    for shape in MESHES:
        run, state, losses = trained(config, stage, workdir, shape)
        np.testing.assert_allclose(losses, expected, rtol=2e-4, err_msg=str(shape))
        same(params, flat(state.trainable), start)
        same(ema, flat(state.ema), start)
        if shape.fsdp > 1:
            check_divided(state, run.mesh, least=16 << 10)


@pytest.mark.slow
def test_microbatches_are_the_same_on_every_mesh_and_the_mean_of_their_gradients(workdir: Path) -> None:
    config = config_for("diffusion", accumulate=2, batch_size=16, row_groups=16)
    _, state, expected = trained(config, "diffusion", workdir, ONE, steps=3)
    params = flat(state.trainable)
    _, state, losses = trained(config, "diffusion", workdir, MESHES[2], steps=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for path, value in flat(state.trainable).items():
        np.testing.assert_allclose(value, params[path], rtol=0, atol=1e-4, err_msg=path)
