"""One train step for every objective: gradients, update, average; pure, jitted once, its state donated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from mvader_jax.train.config import Stage
from mvader_jax.train.objectives import LossFn, Metrics
from mvader_jax.train.optim.optimizer import ema_update
from mvader_jax.train.state import TrainState, seen_by_loss

Step = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]


#: Tells the key of a LoRA's dropout from those of the objective.
_LORA_KEY = 0x10AA
#: Weight of a new loss in the running mean that `max_loss_ratio` compares with.
_NEW_LOSS = 0.01


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    stage: Stage,
    groups: Mapping[str, str],
    row_groups: int,
) -> Step:
    """The step of a stage.

    groups: the group of each trainable path, for the gradient norms.
    row_groups: how many groups the rows of a microbatch are laid out in, a multiple of the devices that
        the batch lies over; microbatches are cut within them, so that accumulating moves no data.
    A bad update (see `Stage.max_loss_ratio`) changes nothing but the counter, and says so in the metric
    `bad_updates`.
    """

    def gradients(state: TrainState, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
        def loss_of(trainable: Any) -> tuple[jax.Array, Metrics]:
            dropout = jax.random.fold_in(key, _LORA_KEY) if stage.lora else None
            averages = stage.objective.averages
            seen = seen_by_loss(trainable, state.frozen, state.ema, averages, stage.lora, dropout)
            loss, metrics = loss_fn(seen, batch, key, row_groups)
            return loss, {"loss": jnp.stack([loss, jnp.ones_like(loss)]), **metrics}

        return jax.grad(loss_of, has_aux=True)(state.trainable)

    def accumulated(state: TrainState, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
        count = stage.accumulate
        parts = jax.tree.map(lambda x: _microbatches(x, count, row_groups), batch)

        def body(carry: tuple[Any, Metrics], part: Any) -> tuple[tuple[Any, Metrics], None]:
            index, microbatch = part
            grads, metrics = gradients(state, microbatch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, (grads, metrics)), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: gradients(state, first, key))
        )
        (grads, metrics), _ = jax.lax.scan(body, zeros, (jnp.arange(count), parts))
        return jax.tree.map(lambda g: g / count, grads), metrics

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = (gradients if stage.accumulate == 1 else accumulated)(state, batch, key)
        norms = _norms(grads, groups)
        loss = metrics["loss"][0] / metrics["loss"][1]
        good = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        loss_mean = state.loss_mean
        if stage.max_loss_ratio:
            first = jnp.isnan(loss_mean)
            good &= first | (loss <= stage.max_loss_ratio * loss_mean)
            new_mean = jnp.where(first, loss, loss_mean + _NEW_LOSS * (loss - loss_mean))
            metrics = {**metrics, "loss_mean": jnp.stack([loss_mean, jnp.ones_like(loss)])}
            loss_mean = jnp.where(good, new_mean, loss_mean)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = ema_update(stage.optimizer, state.ema, trainable, state.step)
        new = (trainable, opt_state, ema)
        old = (state.trainable, state.opt_state, state.ema)
        trainable, opt_state, ema = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        metrics = {
            **metrics,
            **{
                f"gradient_norm/{group}": jnp.stack([norm, jnp.ones_like(norm)])
                for group, norm in norms.items()
            },
            "bad_updates": jnp.stack([1.0 - good, 1.0]).astype(jnp.float32),
        }
        return (
            dataclasses.replace(
                state,
                step=state.step + 1,
                trainable=trainable,
                opt_state=opt_state,
                ema=ema,
                loss_mean=loss_mean,
            ),
            metrics,
        )

    return step


def _norms(grads: Any, groups: Mapping[str, str]) -> dict[str, jax.Array]:
    squares: dict[str, Any] = dict.fromkeys(groups.values(), 0.0)
    for path, grad in flatten_dict(grads, sep="/").items():
        squares[groups[path]] += jnp.sum(jnp.square(grad.astype(jnp.float32)))
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def _microbatches(x: jax.Array, count: int, row_groups: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], each microbatch taking rows from every one of `row_groups` parts."""
    split = x.reshape(row_groups, count, x.shape[0] // (row_groups * count), *x.shape[1:])
    return split.swapaxes(0, 1).reshape(count, x.shape[0] // count, *x.shape[1:])
