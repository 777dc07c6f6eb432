"""Builds everything one stage runs with: its start, its sharded state, its compiled step, its data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mvader_jax.data.batches import Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import Loader, make_loader
from mvader_jax.data.scenes.world import Split
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import calibrate
from mvader_jax.parallel.mesh import compiler_options, process_share
from mvader_jax.parallel.sharding import mesh_axes, param_shardings, replicated
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.flops import count_flops
from mvader_jax.train.objectives import LossFn, Metrics
from mvader_jax.train.optim.optimizer import learning_rate, make_optimizer
from mvader_jax.train.optim.whitening import measure_whitening
from mvader_jax.train.start import Start, gather_start
from mvader_jax.train.state import TrainState, labels, merge, partition
from mvader_jax.train.step import Step, make_train_step


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
    flops: Callable[[TrainState, Any], float]
    evaluate: Callable[[Any, Any, Any, jax.Array], Metrics]
    groups: Mapping[str, str]
    rates: Mapping[str, Callable[[int], Any]]


def build_run(config: TrainConfig, stage: Stage, workdir: str | Path, mesh: Mesh) -> Run:
    """Raises UserError for a mistake in the config or a missing earlier stage."""
    start = gather_start(config, stage, workdir, mesh)
    if "image_encoder" in start.fresh:
        with jax.set_mesh(mesh):
            calibrate_encoder(start.bundle, stage)
    model = stage.objective.stage_model(start.bundle.model)
    patterns = {name: group.parameters for name, group in stage.groups.items()}
    trainable, frozen, groups = partition(start.bundle.components, patterns)
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    frozen = jax.tree.map(functools.partial(_as_frozen, dtype=jnp.dtype(stage.frozen_dtype)), frozen)

    peaks = {name: group.learning_rate for name, group in stage.groups.items()}
    whitening = None
    if stage.optimizer.whiten:
        with jax.set_mesh(mesh):
            whitening = _whitening(start.bundle, model, stage)
    optimizer = make_optimizer(
        stage.optimizer, peaks, stage.steps, trainable, labels(trainable, groups), whitening
    )
    shardings = state_shardings(start, trainable, frozen, patterns, optimizer, mesh)
    if stage.max_loss_ratio:
        shardings = dataclasses.replace(shardings, loss_mean=replicated(mesh))
    # From here on the state owns the parameters, and the bundle keeps their shapes: a second copy would stay
    # for the whole run.
    start.bundle.components = jax.eval_shape(lambda: start.bundle.components)
    state = _begin(stage, optimizer, trainable, frozen, shardings)

    rows = row_groups(stage, mesh)
    step = make_train_step(stage_loss(model, stage), optimizer, stage, groups, rows)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=compiler_options(mesh) or None,
    )

    def flops(state: TrainState, batch: Any) -> float:
        traced = jitted
        if stage.remat != "none":
            plain = stage_loss(model, dataclasses.replace(stage, remat="none"))
            traced = jax.jit(make_train_step(plain, optimizer, stage, groups, rows))
        return count_flops(traced.trace(state, batch).jaxpr)

    evaluated = stage_loss(_without_dropout(model), stage)
    return Run(
        stage=stage,
        mesh=mesh,
        start=start,
        state=state,
        shardings=shardings,
        step=jitted,
        flops=flops,
        evaluate=jax.jit(_evaluator(evaluated, rows), out_shardings=replicated(mesh)),
        groups=groups,
        rates={name: learning_rate(stage.optimizer, peak, stage.steps) for name, peak in peaks.items()},
    )


def stage_loss(model: ModelConfig, stage: Stage) -> LossFn:
    """The loss that a stage minimises. Raises UserError for a stage that its objective does not allow."""
    if stage.accumulate > 1 and not stage.objective.accumulates:
        raise UserError(
            f"the {stage.objective.kind} objective compares all rows of a batch; it cannot accumulate microbatches"
        )
    return stage.objective.loss(model, dtype=stage.dtype, remat=stage.remat)


def _begin(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    trainable: Any,
    frozen: Any,
    shardings: TrainState,
) -> TrainState:
    """The state before the first step. Parameters that lie where they should are not copied."""
    trainable = jax.device_put(trainable, shardings.trainable)
    frozen = jax.device_put(frozen, shardings.frozen)

    def rest(trainable: Any) -> dict[str, Any]:
        return {
            "step": jnp.zeros((), jnp.int32),
            "key": jax.random.key(stage.seed + 1),
            "opt_state": optimizer.init(trainable),
            # A copy: the step donates its state, and one buffer may not be donated twice.
            "ema": jax.tree.map(jnp.copy, trainable),
            "loss_mean": jnp.full((), jnp.nan, jnp.float32) if stage.max_loss_ratio else None,
        }

    of_rest = {name: getattr(shardings, name) for name in jax.eval_shape(rest, trainable)}
    made = jax.jit(rest, out_shardings=of_rest)(trainable)
    return TrainState(trainable=trainable, frozen=frozen, **made)


def state_shardings(
    start: Start,
    trainable: Any,
    frozen: Any,
    patterns: Mapping[str, str],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """The sharding of every leaf of the state; optimizer and average lie as their parameters do."""
    _, axes = abstract_components(start.bundle.model, list(start.bundle.components))
    trainable_axes, frozen_axes, _ = partition(axes, patterns)
    of_trainable = param_shardings(trainable, trainable_axes, mesh)
    whole = replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        # A part that moves some groups alone holds nothing at the leaves of the others.
        lambda leaf, sharding: leaf if isinstance(leaf, optax.MaskedNode) else sharding,
        jax.eval_shape(optimizer.init, trainable),
        of_trainable,
        transform_non_params=lambda _: whole,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    return TrainState(
        step=whole,
        key=whole,
        trainable=of_trainable,
        frozen=param_shardings(frozen, frozen_axes, mesh),
        opt_state=opt_state,
        ema=of_trainable,
    )


def saved(state: TrainState) -> dict[str, Any]:
    """What of a state (or of its shardings) a checkpoint holds; the frozen part comes from its bundles.

    `loss_mean` is in the checkpoint's metadata, so that a stage may ask for it later.
    """
    names = ("step", "key", "trainable", "opt_state", "ema")
    return {name: getattr(state, name) for name in names}


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices the batch is divided."""
    ways = 1
    for axis in mesh_axes("batch"):
        ways *= mesh.shape[axis]
    return ways


def row_groups(stage: Stage, mesh: Mesh) -> int:
    """Groups that the rows of a microbatch are laid out in. Raises UserError where they do not divide."""
    parts = batch_shards(mesh)
    if not stage.row_groups:
        return parts
    groups, rest = divmod(stage.row_groups, stage.accumulate)
    if rest or groups % parts:
        raise UserError(
            f"row_groups is {stage.row_groups}; accepted are multiples of {parts * stage.accumulate}: "
            f"{parts} devices that share the batch, {stage.accumulate} microbatches"
        )
    return groups


def data_loader(run: Run, split: Split) -> Loader:
    """This process's part of the stage's data; of the validation split, in batches of a microbatch's size.

    Raises UserError for a batch that does not divide over the devices and microbatches.
    """
    stage, groups = run.stage, row_groups(run.stage, run.mesh)
    if stage.batch_size % (groups * stage.accumulate):
        raise UserError(
            f"a batch of {stage.batch_size} does not divide into {groups * stage.accumulate} groups of rows: "
            f"{groups} for the mesh, {stage.accumulate} microbatches"
        )
    if split == "validation":
        stage = dataclasses.replace(stage, batch_size=stage.batch_size // stage.accumulate, accumulate=1)
    index, count = process_share(run.mesh)
    return stage_loader(
        run.start.bundle, stage, groups=groups * stage.accumulate, process=(index, count), split=split
    )


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


def batch_shape(
    model: ModelConfig, stage: Stage, groups: int = 1, process: tuple[int, int] = (0, 1)
) -> tuple[DataConfig, Shape]:
    """(the stage's data, the shape of its batches), with the sizes that the model's parts want."""
    encoder, data = model.image_encoder, stage.data
    if model.unet is not None and model.vae is not None:
        data = dataclasses.replace(data, image_size=model.unet.sample_size * model.vae.multiple)
    shape = Shape(
        stage.batch_size,
        groups,
        *process,
        image_tokens=encoder.num_tokens if encoder else 0,
        encoder_size=encoder.image_size if encoder else 0,
    )
    return data, shape


def calibrate_encoder(bundle: Bundle, stage: Stage) -> None:
    """Sets a fresh image encoder's batch norms from the first batch, the same one in every process."""
    assert bundle.model.image_encoder is not None
    pixels = stage.objective.encoder_input(next(stage_loader(bundle, stage)))
    components = bundle.components
    components["image_encoder"] = jax.jit(functools.partial(calibrate, bundle.model.image_encoder))(
        components["image_encoder"], pixels
    )


def _whitening(bundle: Bundle, model: ModelConfig, stage: Stage) -> np.ndarray:
    """Measured on the same prompts in every process, whatever the mesh and the batch."""
    few = dataclasses.replace(stage, batch_size=32)
    return measure_whitening(model, bundle.components, few, iter(stage_loader(bundle, few)))


def _as_frozen(leaf: Any, dtype: Any) -> Any:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _without_dropout(model: ModelConfig) -> ModelConfig:
    """The model as it is validated: the image prefix drops nothing."""
    if model.image_prefix is None:
        return model
    return dataclasses.replace(model, image_prefix=dataclasses.replace(model.image_prefix, dropout=0.0))


def _evaluator(loss_fn: LossFn, row_groups: int) -> Callable[[Any, Any, Any, jax.Array], Metrics]:
    def evaluate(ema: Any, frozen: Any, batch: Any, key: jax.Array) -> Metrics:
        loss, metrics = loss_fn(merge(ema, frozen), batch, key, row_groups)
        return {"loss": jnp.stack([loss, jnp.ones_like(loss)]), **metrics}

    return evaluate
