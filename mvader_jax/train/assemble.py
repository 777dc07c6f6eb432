"""The train step put together: all that follows from a stage's settings and its parameters' shapes.

Training calls it with weights, plans with shapes alone: what one does the other does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mvader_jax.data.batches import Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.quantised import has_integers, is_matrix, kept_in, quantised, with_scales
from mvader_jax.models.remat import Remat
from mvader_jax.parallel.mesh import compiler_options
from mvader_jax.parallel.sharding import mesh_axes, param_shardings, replicated
from mvader_jax.train.config import Stage
from mvader_jax.train.lora import LORA, check_groups, with_factor_axes, with_factors
from mvader_jax.train.objectives import LossFn
from mvader_jax.train.optim.optimizer import make_optimizer
from mvader_jax.train.sizes import sized
from mvader_jax.train.state import TrainState, Tree, labels, partition
from mvader_jax.train.step import Step, make_train_step


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The step of a stage on a mesh, and the state that it is born with.

    model: as the stage sees it. groups: {path of a leaf that trains: its group}. rows: groups that the rows of
    a microbatch are laid out in. shardings: of every leaf of the state.
    """

    stage: Stage
    model: ModelConfig
    mesh: Mesh
    groups: Mapping[str, str]
    rows: int
    optimizer: optax.GradientTransformation
    shardings: TrainState

    def loss(self, remat: Remat | None = None) -> LossFn:
        """remat: in place of the stage's own."""
        return stage_loss(self.model, self.stage, remat)

    def step(self, remat: Remat | None = None) -> Step:
        """To be jitted with `jit_options`. remat: in place of the stage's own."""
        return make_train_step(self.loss(remat), self.optimizer, self.stage, self.groups, self.rows)

    @property
    def jit_options(self) -> dict[str, Any]:
        """Of `jax.jit` for the step: it takes its state's memory over."""
        return {
            "donate_argnums": (0,),
            "out_shardings": (self.shardings, replicated(self.mesh)),
            "compiler_options": compiler_options(self.mesh) or None,
        }

    def initial_state(self, trainable: Tree, frozen: Tree) -> TrainState:
        """The state before the first step. Parameters that lie where they should are not copied."""
        trainable = jax.device_put(trainable, self.shardings.trainable)
        frozen = jax.device_put(frozen, self.shardings.frozen)
        of_rest = {name: getattr(self.shardings, name) for name in jax.eval_shape(self._rest, trainable)}
        made = jax.jit(self._rest, out_shardings=of_rest)(trainable)
        return TrainState(trainable=trainable, frozen=frozen, **made)

    def abstract_state(self, trainable: Tree, frozen: Tree) -> TrainState:
        """`initial_state` as shapes, dtypes and shardings."""
        state = TrainState(trainable=trainable, frozen=frozen, **jax.eval_shape(self._rest, trainable))
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            self.shardings,
        )

    def _rest(self, trainable: Tree) -> dict[str, Any]:
        """Everything in the first state beside the parameters."""
        return {
            "step": jnp.zeros((), jnp.int32),
            "key": jax.random.key(self.stage.seed + 1),
            "opt_state": self.optimizer.init(trainable),
            # A copy: the step donates its state, and one buffer may not be donated twice.
            "ema": jax.tree.map(jnp.copy, trainable),
            "loss_mean": jnp.full((), jnp.nan, jnp.float32) if self.stage.max_loss_ratio else None,
        }


def assemble(
    model: ModelConfig, components: Mapping[str, Tree], stage: Stage, mesh: Mesh, whitening: np.ndarray | None
) -> tuple[Assembly, Tree, Tree]:
    """(the assembly, the parameters that train, the frozen ones), of arrays or of shapes alike.

    model: with every part that `components` are of. whitening: [in, in], where the stage whitens groups.
    Raises UserError for a mistake in the stage, and for a mesh that the parameters or the rows do not divide over.
    """
    trainable, frozen, groups = split(components, stage)
    optimizer = make_optimizer(
        stage.optimizer,
        {name: group.learning_rate for name, group in stage.groups.items()},
        stage.steps,
        trainable,
        labels(trainable, groups),
        whitening,
    )
    assembly = Assembly(
        stage=stage,
        model=stage.objective.stage_model(model),
        mesh=mesh,
        groups=groups,
        rows=row_groups(stage, mesh),
        optimizer=optimizer,
        shardings=_shardings(model, trainable, frozen, optimizer, stage, mesh),
    )
    return assembly, trainable, frozen


def split(components: Mapping[str, Tree], stage: Stage) -> tuple[Tree, Tree, dict[str, str]]:
    """`partition` by the stage's groups, each part in the dtype that the stage keeps it in; with fresh factors where
    the stage trains some."""
    components = with_factors(components, stage.lora, stage.seed)
    trainable, frozen, groups = partition(components, _patterns(stage))
    check_groups(components, stage.lora, groups, stage.objective.teachers)
    for name in stage.objective.teachers:
        if name in trainable:
            raise UserError(
                f"the groups train the {name}, the teacher of the {stage.objective.kind} objective, which stays as it is"
            )
    trainable = jax.tree.map(lambda x: _cast(x, jnp.float32), trainable)
    dtype, integers = kept_in(stage.frozen_dtype, stage.dtype)
    if any(is_matrix(tuple(path.split("/"))) for path in groups):
        if integers is not None:
            raise UserError(
                f"frozen_dtype {integers} is for a decoder that stays frozen; here its matrices train"
            )
        if has_integers(components["decoder"]):
            raise UserError(
                "the decoder that the stage starts from is stored as integers; its matrices cannot train"
            )
    if integers is not None:
        if "decoder" in stage.lora:
            raise UserError(f"frozen_dtype {integers} is for a decoder that stays as it is; lora changes it")
        frozen = quantised(frozen, integers)
    # Integers and keys stay what they are.
    kept = jnp.dtype(dtype)
    frozen = jax.tree.map(lambda x: _cast(x, kept) if jnp.issubdtype(x.dtype, jnp.floating) else x, frozen)
    return trainable, frozen, groups


def stage_loss(model: ModelConfig, stage: Stage, remat: Remat | None = None) -> LossFn:
    """The loss that a stage minimises. remat: in place of its own."""
    return stage.objective.loss(model, dtype=stage.dtype, remat=remat or stage.remat)


def _shardings(
    model: ModelConfig,
    trainable: Tree,
    frozen: Tree,
    optimizer: optax.GradientTransformation,
    stage: Stage,
    mesh: Mesh,
) -> TrainState:
    """The sharding of every leaf of the state; optimizer and average lie as their parameters do."""
    _, axes = abstract_components(model, sorted({*trainable, *frozen} - {LORA}))
    axes = with_factor_axes(axes, trainable)
    trainable_axes, frozen_axes, _ = partition(axes, _patterns(stage))
    frozen_axes = with_scales(frozen_axes, frozen)
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
        loss_mean=whole if stage.max_loss_ratio else None,
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


def batch_groups(stage: Stage, mesh: Mesh) -> int:
    """Groups that the rows of a whole batch are laid out in. Raises UserError where the batch does not divide."""
    groups = row_groups(stage, mesh)
    if stage.batch_size % (groups * stage.accumulate):
        raise UserError(
            f"a batch of {stage.batch_size} does not divide into {groups * stage.accumulate} groups of rows: "
            f"{groups} for the mesh, {stage.accumulate} microbatches"
        )
    return groups * stage.accumulate


def batch_shape(
    model: ModelConfig, stage: Stage, groups: int = 1, process: tuple[int, int] = (0, 1)
) -> tuple[DataConfig, Shape]:
    """(the stage's data, the shape of its batches), with the sizes that the model's parts want."""
    encoder, data = model.image_encoder, sized(stage.data, model)
    shape = Shape(
        stage.batch_size,
        groups,
        *process,
        image_tokens=encoder.num_tokens if encoder else 0,
        encoder_size=encoder.image_size if encoder else 0,
    )
    return data, shape


def _patterns(stage: Stage) -> dict[str, str]:
    return {name: group.parameters for name, group in stage.groups.items()}


def _cast(leaf: Any, dtype: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaf.astype(dtype)
