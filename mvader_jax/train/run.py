"""One stage, ready to go: its start, its state on the mesh, its compiled step, its data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mvader_jax.data.batches import Batch
from mvader_jax.data.loader import Loader, make_loader
from mvader_jax.data.scenes.world import Split
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig, calibrate
from mvader_jax.parallel.mesh import process_share
from mvader_jax.parallel.sharding import replicated
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.assemble import assemble, batch_groups, batch_shape, stage_loss
from mvader_jax.train.check import check_stage
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.flops import count_flops
from mvader_jax.train.objectives import LossFn, Metrics
from mvader_jax.train.optim.optimizer import learning_rate
from mvader_jax.train.optim.whitening import measure_whitening
from mvader_jax.train.sizes import sized
from mvader_jax.train.start import Start, earlier_components, gather_start
from mvader_jax.train.state import TrainState, Tree, seen_by_loss
from mvader_jax.train.step import Step


@dataclasses.dataclass(frozen=True)
class Run:
    """One stage, ready to go: where it starts, its state on the mesh, its step.

    flops: model FLOPs of a step on such a state and batch, over all devices.
    """

    stage: Stage
    mesh: Mesh
    start: Start
    state: TrainState
    shardings: TrainState
    step: Step
    flops: Callable[[TrainState, Batch], float]
    evaluate: Callable[[Tree, Tree, Batch, jax.Array], Metrics]
    groups: Mapping[str, str]
    rates: Mapping[str, Callable[[int], Any]]


def build_run(config: TrainConfig, stage: Stage, workdir: str | Path, mesh: Mesh) -> Run:
    """Raises UserError for a mistake in the config or a missing earlier stage."""
    check_stage(stage)
    check_data(config, stage, workdir)
    start = gather_start(config, stage, workdir, mesh)
    bundle, whitening = start.bundle, None
    with jax.set_mesh(mesh):
        if "image_encoder" in start.fresh:
            calibrate_encoder(bundle, stage)
        if stage.optimizer.whiten:
            whitening = _whitening(bundle, stage)
    assembly, trainable, frozen = assemble(bundle.model, bundle.components, stage, mesh, whitening)
    # From here on the state owns the parameters, and the bundle keeps their shapes: a second copy would stay
    # for the whole run.
    bundle.components = jax.eval_shape(lambda: bundle.components)
    state = assembly.initial_state(trainable, frozen)
    del trainable, frozen
    step = jax.jit(assembly.step(), **assembly.jit_options)

    def flops(state: TrainState, batch: Batch) -> float:
        traced = step if stage.remat == "none" else jax.jit(assembly.step(remat="none"))
        return count_flops(traced.trace(state, batch).jaxpr)

    evaluated = stage_loss(_without_dropout(assembly.model), stage)
    return Run(
        stage=stage,
        mesh=mesh,
        start=start,
        state=state,
        shardings=assembly.shardings,
        step=step,
        flops=flops,
        evaluate=jax.jit(_evaluator(evaluated, assembly.rows, stage), out_shardings=replicated(mesh)),
        groups=assembly.groups,
        rates={
            name: learning_rate(stage.optimizer, group.learning_rate, stage.steps)
            for name, group in stage.groups.items()
        },
    )


def check_data(config: TrainConfig, stage: Stage, workdir: str | Path) -> None:
    """Opens the stage's data, before its parameters are read. Raises UserError where it is not there."""
    model, _, _ = earlier_components(config, stage, workdir)
    stage.objective.check_model(model)
    stage.objective.sources(sized(stage.data, model), "train")


def data_loader(run: Run, split: Split) -> Loader:
    """This process's part of the stage's data; of the validation split, in batches of a microbatch's size.

    Raises UserError for a batch that does not divide over the devices and microbatches.
    """
    stage, groups = run.stage, batch_groups(run.stage, run.mesh)
    if split == "validation":
        stage = dataclasses.replace(stage, batch_size=stage.batch_size // stage.accumulate, accumulate=1)
    index, count = process_share(run.mesh)
    return stage_loader(run.start.bundle, stage, groups=groups, process=(index, count), split=split)


def stage_loader(
    bundle: Bundle,
    stage: Stage,
    *,
    groups: int = 1,
    process: tuple[int, int] = (0, 1),
    split: Split = "train",
) -> Loader:
    """The loader of a stage's data. process: (index, count); groups: of the global batch's rows."""
    data, shape = batch_shape(bundle.model, stage, groups, process)
    return make_loader(data, stage.objective, bundle.tokenizer, shape, split)


def calibrate_encoder(bundle: Bundle, stage: Stage) -> None:
    """Sets a fresh image encoder's batch norms from the first batch, the same one in every process."""
    config = bundle.model.require(ImageEncoderConfig)
    pixels = stage.objective.encoder_input(next(stage_loader(bundle, stage)))
    components = bundle.components
    components["image_encoder"] = jax.jit(functools.partial(calibrate, config))(
        components["image_encoder"], pixels
    )


def _whitening(bundle: Bundle, stage: Stage) -> np.ndarray:
    """Measured on the same prompts in every process, whatever the mesh and the batch."""
    few = dataclasses.replace(stage, batch_size=32)
    model = stage.objective.stage_model(bundle.model)
    return measure_whitening(model, bundle.components, few, iter(stage_loader(bundle, few)))


def _without_dropout(model: ModelConfig) -> ModelConfig:
    """The model as it is validated: the image prefix drops nothing."""
    if model.image_prefix is None:
        return model
    return dataclasses.replace(model, image_prefix=dataclasses.replace(model.image_prefix, dropout=0.0))


def _evaluator(
    loss_fn: LossFn, row_groups: int, stage: Stage
) -> Callable[[Tree, Tree, Batch, jax.Array], Metrics]:
    def evaluate(ema: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> Metrics:
        seen = seen_by_loss(ema, frozen, ema, stage.objective.averages, stage.lora)
        loss, metrics = loss_fn(seen, batch, key, row_groups)
        return {"loss": jnp.stack([loss, jnp.ones_like(loss)]), **metrics}

    return evaluate
