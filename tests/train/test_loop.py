"""The training loop on the smallest model: every stage in turn, any mesh, and back after a stop."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.bundle import load_bundle, save_bundle
from mvader_jax.condition import PADDING, Condition
from mvader_jax.data.rows import row_layout
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_global, make_mesh
from mvader_jax.train.config import Group, TrainConfig, load_config
from mvader_jax.train.loop import PREEMPTED, train
from mvader_jax.train.objectives.diffusion import join_rows, replace_rows
from mvader_jax.train.run import build_run, data_loader
from mvader_jax.train.state import partition


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which the stages before diffusion are 'finished' with random weights."""
    path = tmp_path_factory.mktemp("run")
    for stage in ("vae", "language", "captioning", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle())
    return path


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one whenever XLA compiles a program."""
    events: list[str] = []

    def note(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


def config_for(stage: str, **changes: Any) -> TrainConfig:
    config = micro.train_config()
    return dataclasses.replace(
        config, stages={**config.stages, stage: dataclasses.replace(config.stages[stage], **changes)}
    )


def final(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    bundle = load_bundle(workdir / stage / "bundle")
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(bundle.components, sep="/").items()}


@pytest.mark.parametrize("stage", ["captioning", "contrastive"])
def test_a_stage_trains_its_own_groups_only(stage: str, workdir: Path, tmp_path: Path) -> None:
    for name in ("language", "captioning"):
        if name != stage:
            (tmp_path / name).mkdir()
            os.symlink(workdir / name / "bundle", tmp_path / name / "bundle")
    config = config_for(stage, steps=2)
    assert train(config, stage, tmp_path, one_device(), quiet=True) == 0
    trained = {"captioning": "adapters", "contrastive": "biases"}[stage]
    after = final(tmp_path, stage)
    records = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert any("validation/loss" in record for record in records)
    before = {
        path: np.asarray(leaf) for path, leaf in flatten_dict(micro.bundle().components, sep="/").items()
    }
    changed = {path.split("/")[0] for path in after if not np.array_equal(after[path], before[path])}
    assert trained in changed
    assert not changed - {"captioning": {"adapters", "image_prefix"}, "contrastive": {"biases"}}[stage]


def test_stopped_and_started_again_is_bitwise_the_undisturbed_run(tmp_path: Path) -> None:
    ends = []
    for name in ("whole", "stopped"):
        root = tmp_path / name
        config = micro.train_config()
        if name == "stopped":
            # The notice of preemption arrives while the first part runs.
            calls = []

            def notice(number: int, calls: list[int] = calls) -> None:
                calls.append(number)
                if len(calls) == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

            assert train(config, "vae", root, one_device(), quiet=True, on_step=notice) == PREEMPTED
            assert len(calls) < config.stages["vae"].steps
            assert not (root / "vae" / "bundle").exists()
        assert train(config, "vae", root, one_device(), quiet=True) == 0
        ends.append(final(root, "vae"))
    assert ends[0].keys() == ends[1].keys()
    for path in ends[0]:
        np.testing.assert_array_equal(ends[0][path], ends[1][path], err_msg=path)


def test_a_mesh_changes_neither_loss_nor_parameters(workdir: Path, compilations: list[str]) -> None:
    outcomes = []
    # The same groups of rows everywhere: what is drawn for a row must not depend on the mesh.
    for mesh in (
        make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
        make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]),
    ):
        config = micro.train_config(accumulate=1)
        run = build_run(config, config.stage("diffusion"), workdir, mesh)
        kernel = run.state.trainable["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
        fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
        assert kernel.addressable_shards[0].data.shape == (3, 3, 32 // fsdp, 32 // tensor)
        moment = run.state.opt_state[1].mu["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
        assert moment.sharding == kernel.sharding
        loader, state, losses = data_loader(run, "train"), run.state, []
        compiled: list[int] = []
        with jax.set_mesh(mesh):
            for _ in range(3):
                state, metrics = run.step(state, make_global(next(loader), mesh))
                losses.append(float(metrics["loss"][0]))
                compiled.append(len(compilations))
        assert compiled[1:] == [compiled[0]] * 2, "a later step compiled again"
        outcomes.append((losses, jax.tree.map(np.asarray, state.trainable)))
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), outcomes[0][1], outcomes[1][1])


def test_joined_rows_are_each_samples_own_condition() -> None:
    # Two groups of three samples; two image rows and two caption rows a group, overlapping in the middle.
    image = Condition(jnp.arange(4.0).reshape(4, 1, 1) + 10, jnp.zeros((4, 1)))
    text = Condition(jnp.repeat(jnp.arange(4.0), 2).reshape(4, 2, 1) + 20, jnp.zeros((4, 2)))
    use_image = jnp.array([True, True, False, True, False, False])
    joined = join_rows(image, text, use_image, groups=2)
    np.testing.assert_array_equal(joined.hidden[:, 0, 0], [10, 11, 21, 12, 22, 23])
    np.testing.assert_array_equal(joined.log_weights[:, 1] == PADDING, use_image)
    null = Condition(jnp.full((1, 1, 1), -1.0), jnp.zeros((1, 1)))
    replaced = replace_rows(joined, null, jnp.array([False] * 5 + [True]))
    assert replaced.hidden[5, 0, 0] == -1.0 and replaced.log_weights[5, 1] == PADDING
    assert row_layout(64, 0.2).image_rows == 13


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        partition({"unet": {"conv": {"kernel": np.zeros(3)}}}, {"typo": "unet/konv/.*"})


def test_configs_load_and_overrides_are_checked() -> None:
    config = load_config("configs/tiny.py", ["stages.vae.steps=7", "stages.diffusion.data.p_image=0.5"])
    assert config.stages["vae"].steps == 7
    assert config.stages["diffusion"].data.p_image == 0.5
    assert config.stages["contrastive"].groups == {"biases": Group("biases/.*", 1e-3)}
    with pytest.raises(UserError, match="did you mean 'steps'"):
        load_config("configs/tiny.py", ["stages.vae.stepps=7"])
    with pytest.raises(UserError, match="expected int"):
        load_config("configs/tiny.py", ["stages.vae.steps=many"])
    with pytest.raises(UserError, match="no config file"):
        load_config("configs/none.py")
    with pytest.raises(UserError, match="unknown objective"):
        config.stage("difusion")
