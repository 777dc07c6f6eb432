"""A student is taught: what it starts as, what its prompts weigh, and that it learns, goes on and draws."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Scenes
from mvader_jax.errors import UserError
from mvader_jax.lora.config import LoraConfig
from mvader_jax.models.components import abstract_components, init_component
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.program import train_program
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.train.assemble import split
from mvader_jax.train.config import Group, TrainConfig
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Distillation
from mvader_jax.train.run import build_run, stage_loader
from mvader_jax.train.samples import SampleGrid

STUDENT = Distillation(caption_length=24, time_cond_proj_dim=16, p_image=0.25, p_interleaved=0.5)
DATA = DataConfig(Scenes(num_records=64, prompts=("color", "pair")), threads=1, image_size=8)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def config(init: str, objective: Distillation = STUDENT, **changes: object) -> TrainConfig:
    base = micro.nano_config().stages["diffusion"]
    stage = dataclasses.replace(
        base,
        objective=objective,
        init=(init,),
        data=DATA,
        groups={"student": Group("unet_fast/.*", 1e-3)},
        **{"steps": 4, "batch_size": 8, "log_every": 1, **changes},
    )
    return TrainConfig("nano", micro.NANO, {"distill": stage})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    path, bundle = tmp_path_factory.mktemp("taught") / "bundle", micro.bundle(micro.NANO)
    save_bundle(path, bundle)
    return str(path), bundle


@pytest.fixture(scope="module")
def finished(taught: tuple[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    chosen = config(taught[0], sample_every=4, sample_steps=2)
    assert train(chosen, "distill", workdir, ONE, on_sample=SampleGrid(), quiet=True) == 0
    return workdir / "distill"


def extended() -> Bundle:
    bundle = micro.bundle(micro.NANO)
    return dataclasses.replace(bundle, model=STUDENT.extended(bundle.model))


def test_it_starts_as_its_teacher_and_knows_no_scale() -> None:
    bundle = extended()
    made = init_component(bundle.model, "unet_fast", jax.random.key(0), None, bundle.components)
    own, theirs = (flatten_dict(tree, sep="/") for tree in (made, bundle.components["unet"]))
    added = own.keys() - theirs.keys()
    assert added == {"time_embedding/cond_proj/kernel"} and not np.any(own[added.pop()])
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(own[path], leaf)
        assert own[path] is not leaf


def test_what_it_cannot_start_from_is_refused() -> None:
    bundle = extended()
    with pytest.raises(UserError, match="starts as a copy of the unet, and there is no unet"):
        init_component(bundle.model, "unet_fast", jax.random.key(0), None, {})
    with pytest.raises(UserError, match="was distilled to few steps already"):
        STUDENT.extended(bundle.model.fast)
    other = dataclasses.replace(STUDENT, time_cond_proj_dim=32)
    with pytest.raises(UserError, match="not its teacher with time_cond_proj_dim 32"):
        other.extended(bundle.model)
    with pytest.raises(UserError, match=r"objective.guidance is 9 to 3; the first is the smaller"):
        Distillation(guidance=(9.0, 3.0))
    with pytest.raises(UserError, match=r"objective.p_theta is set, but p_interleaved is 0"):
        Distillation(p_theta=0.3).check(DATA)


def test_a_group_that_trains_the_teacher_is_refused() -> None:
    stage = config("unread").stages["distill"]
    groups = {**stage.groups, "teacher": Group("unet/.*", 1e-3)}
    model = STUDENT.extended(micro.NANO)
    shapes, _ = abstract_components(model, ["unet", "unet_fast"])
    assert set(split(shapes, stage)[0]) == {"unet_fast"}
    with pytest.raises(
        UserError, match="the groups train the unet, the teacher of the distillation objective"
    ):
        split(shapes, dataclasses.replace(stage, groups=groups))


def test_the_elements_of_half_its_prompts_are_weighted() -> None:
    bundle = extended()
    stage = dataclasses.replace(config("").stages["distill"], batch_size=64)
    batch = next(stage_loader(bundle, stage))
    tokens = bundle.model.image_encoder.num_tokens  # type: ignore[union-attr]
    weighted = STUDENT.weighted(batch, tokens, jax.random.key(1))
    before, after = batch["interleaved_prompt"], weighted["interleaved_prompt"]
    change = np.asarray(after.log_weights - before.log_weights)
    np.testing.assert_array_equal(change, after.condition_log_weights - before.condition_log_weights)
    moved = 0
    for row in range(len(change)):
        present = before.log_weights[row] > -1e6
        element = np.where(before.image_index[row] < 0, -1, before.image_index[row] // tokens)
        logs = [np.unique(change[row][present & (element == one)]) for one in np.unique(element[present])]
        assert all(len(one) == 1 for one in logs)
        values = np.concatenate(logs)
        assert np.all(values == 0) or (len(set(values.tolist())) == len(values) > 1)
        assert np.all(values >= np.log(0.02)) and np.all(values <= np.log(2.0))
        moved += bool(np.any(values))
    assert 0.2 < moved / len(change) < 0.8
    np.testing.assert_array_equal(weighted["text_prompt"].log_weights, batch["text_prompt"].log_weights)


def test_it_trains_writes_half_precision_and_draws(finished: Path, taught: tuple[str, Bundle]) -> None:
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [r for r in records if "loss" in r]
    assert [r["step"] for r in losses] == [1, 2, 3, 4]
    assert all({"loss_image", "loss_text", "loss_interleaved"} <= r.keys() for r in losses)
    assert any("validation/loss" in r for r in records)
    assert (finished / "samples" / "0000004.png").is_file()

    written = load_bundle(finished / "bundle")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(written.components["unet_fast"])} == {"bfloat16"}
    # The teacher and all else is as it was.
    for name, tree in taught[1].components.items():
        jax.tree.map(np.testing.assert_array_equal, written.components[name], tree)
    assert written.model.unet_fast == dataclasses.replace(micro.NANO.unet, time_cond_proj_dim=16)  # type: ignore[type-var]

    pipe = Pipeline.load(finished / "bundle", fast=True)
    assert "unet_fast" not in pipe.bundle.components and pipe.defaults.steps == 4
    few = pipe("a red circle", seed=3)[0]
    slow = Pipeline.load(finished / "bundle")
    assert "unet_fast" not in slow.bundle.components
    assert np.array_equal(few, Pipeline(written.fast())("a red circle", seed=3)[0])
    assert not np.array_equal(few, slow("a red circle", seed=3, steps=4)[0])


def test_it_goes_on_where_it_stopped(finished: Path, taught: tuple[str, Bundle], tmp_path: Path) -> None:
    for steps in (2, 4):
        chosen = config(taught[0], steps=steps, sample_every=0)
        # The rate decays over the steps of a stage: the same one for both.
        rate = dataclasses.replace(chosen.stages["distill"].optimizer, decay="constant")
        stages = {"distill": dataclasses.replace(chosen.stages["distill"], optimizer=rate)}
        assert train(dataclasses.replace(chosen, stages=stages), "distill", tmp_path, ONE, quiet=True) == 0
    again, whole = (
        load_bundle(p / "bundle", components=["unet_fast"]) for p in (tmp_path / "distill", finished)
    )
    jax.tree.map(np.testing.assert_array_equal, again.components, whole.components)


#: A student that is its teacher and narrow factors, as LCM-LoRA is.
FACTORS = {
    "lora": {"unet_fast": LoraConfig(rank=2, targets="attn.*/to_[qkvo].*")},
    "groups": {"lora": Group("lora/.*", 1e-3)},
}


@pytest.mark.parametrize("changes", [{}, FACTORS], ids=["whole", "factors"])
def test_the_average_is_the_target(
    changes: dict[str, Any], taught: tuple[str, Bundle], tmp_path: Path
) -> None:
    chosen = config(taught[0])
    stage = dataclasses.replace(chosen.stages["distill"], **changes)
    run = build_run(dataclasses.replace(chosen, stages={"distill": stage}), stage, tmp_path, ONE)
    batch = next(stage_loader(run.start.bundle, run.stage))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, run.state.ema)
    metrics = [
        run.step(dataclasses.replace(jax.tree.map(jnp.copy, run.state), ema=ema), batch)[1]["loss"][0]
        for ema in (jax.tree.map(jnp.copy, run.state.ema), moved)
    ]
    assert metrics[0] != metrics[1]


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_it_is_planned_on_a_mesh(solver: str) -> None:
    objective = dataclasses.replace(STUDENT, solver=solver)  # type: ignore[arg-type]
    loaded = config("", objective)
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    program = train_program(loaded, loaded.stages["distill"], mesh)
    assert "stablehlo" in program.lower("cpu").as_text()
    state = program.arguments[0]
    assert set(state.trainable) == {"unet_fast"} and "unet" in state.frozen
