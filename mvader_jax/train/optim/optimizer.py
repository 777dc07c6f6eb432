"""AdamW or Muon with a learning rate per group, warm-up and decay, clipping, and an exponential moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from mvader_jax.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, Share, below
from mvader_jax.errors import UserError
from mvader_jax.settings import Checked


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW. Stable Diffusion's values by default (facts of its training: betas .9/.999, decay 1e-2)."""

    #: Decay of the first moment.
    b1: Annotated[float, below(0, 1)] = 0.9
    #: Decay of the second moment.
    b2: Annotated[float, below(0, 1)] = 0.999
    #: Added to the square root of the second moment.
    eps: PositiveFloat = 1e-8
    #: Of matrices, kernels and the factors of a LoRA; norms and biases have none.
    weight_decay: NonNegativeFloat = 1e-2
    #: Groups of matrices [in, out] that Muon moves (Jordan 2024): every direction of the input alike, however
    #: little of the input's variance lies in it. Its rates are the spectral norm of an update, about .02.
    muon: tuple[str, ...] = ()
    #: Groups of matrices that read the condition, moved, and pulled by weight decay, in coordinates where its
    #: hidden states vary alike in every direction (train/whitening.py).
    whiten: tuple[str, ...] = ()
    #: Greatest global norm of the gradients of all groups; 0 turns clipping off.
    clip_norm: NonNegativeFloat = 1.0
    #: Steps in which rates rise to their peaks.
    warmup_steps: NonNegativeInt = 0
    #: What rates do then: nothing, or fall to `final_fraction` of their peaks.
    decay: Literal["constant", "linear", "cosine"] = "constant"
    #: The step at which they have fallen; 0: the last one.
    decay_steps: NonNegativeInt = 0
    #: What is left of the peaks at the end.
    final_fraction: Share = 0.0
    #: Decay of the average of the parameters, which is the result; 0 keeps none: the last parameters are the result.
    ema_decay: Annotated[float, below(0, 1)] = 0.9999


def learning_rate(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """The rate of one group over a run of `steps` updates."""
    length = max((config.decay_steps or steps) - config.warmup_steps, 1)
    floor = peak * config.final_fraction
    after: optax.Schedule
    if config.decay == "constant":
        after = optax.constant_schedule(peak)
    elif config.decay == "linear":
        after = optax.linear_schedule(peak, floor, length)
    else:
        after = optax.cosine_decay_schedule(peak, length, alpha=config.final_fraction)
    if not config.warmup_steps:
        return after
    # The first update already moves: the ramp begins at 1/warmup, not at 0.
    ramp = optax.linear_schedule(peak / config.warmup_steps, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([ramp, after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig,
    rates: Mapping[str, float],
    steps: int,
    trainable: Any,
    labels: Any,
    whitening: Any = None,
) -> optax.GradientTransformation:
    """The optimizer of a stage.

    rates: peak learning rate of each group; trainable: arrays or shapes; labels: the group of each of its leaves.
    whitening: [in, in], symmetric, where groups are whitened.
    Raises UserError for an unknown group, a group for Muon that is not all matrices, and one to
    whiten that is not all matrices of the condition's width.
    """
    for field in ("muon", "whiten"):
        for group in getattr(config, field):
            if group not in rates:
                raise UserError(
                    f"optimizer.{field} names {group!r}; the stage's groups are {', '.join(rates)}"
                )
    for (path, leaf), group in zip(
        jax.tree_util.tree_leaves_with_path(trainable), jax.tree.leaves(labels), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if group in config.muon and leaf.ndim != 2:
            raise UserError(f"Muon moves matrices; {name} of group {group!r} has {leaf.ndim} dimensions")
        if group in config.whiten and (leaf.ndim != 2 or leaf.shape[0] != len(whitening)):
            raise UserError(
                f"optimizer.whiten takes matrices that read the condition, [{len(whitening)}, ...]; "
                f"{name} of group {group!r} is {list(leaf.shape)}"
            )
    schedules = {group: learning_rate(config, rate, steps) for group, rate in rates.items()}
    adam = (
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        # Decay pulls matrices and kernels, never norms and biases (stacked layers add one dimension).
        optax.add_decayed_weights(config.weight_decay, mask=_is_kernel),
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if not config.muon and not config.whiten:
        scales = {group: optax.scale_by_learning_rate(rate) for group, rate in schedules.items()}
        return optax.chain(clip, *adam, optax.multi_transform(scales, labels))
    movers = {
        group: optax.contrib.muon(rate, weight_decay=config.weight_decay)
        if group in config.muon
        else optax.chain(*adam, optax.scale_by_learning_rate(rate))
        for group, rate in schedules.items()
    }
    movers |= {group: _whitened(movers[group], whitening) for group in config.whiten}
    return optax.chain(clip, optax.multi_transform(movers, labels))


def _whitened(mover: optax.GradientTransformation, matrix: Any) -> optax.GradientTransformation:
    """`mover` of V where W = matrix V: what reads h with W reads matrix h, whitened, with V.

    The matrix and its inverse are part of the state, so that a run goes on with those it began with.
    """

    def turned(matrix: jax.Array, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.matmul(matrix, x, precision="highest"), tree)

    def init(params: Any) -> Any:
        both = (jnp.asarray(matrix, jnp.float32), jnp.asarray(np.linalg.inv(matrix), jnp.float32))
        return both, mover.init(params)

    def update(updates: Any, state: Any, params: Any) -> Any:
        (there, back), inner = state
        moved, inner = mover.update(turned(there, updates), inner, turned(back, params))
        return turned(there, moved), ((there, back), inner)

    return optax.GradientTransformation(init, update)


def ema_update(config: OptimizerConfig, ema: Any, params: Any, step: jax.Array) -> Any:
    """The average after update number `step` (from 0), warmed up so that early weights are forgotten."""
    if not config.ema_decay:
        return params
    count = step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(
        lambda a, p: (a * decay + p.astype(a.dtype) * (1.0 - decay)).astype(a.dtype), ema, params
    )


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], "key", "")) in ("kernel", "embedding", "down", "up"), params
    )
