"""The step on a model of one matrix, where every number can be worked out by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.data.config import DataConfig
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.sharding import batch_sharding, replicated
from mvader_jax.train.config import Group, Stage
from mvader_jax.train.objectives import Autoencoding
from mvader_jax.train.optim.optimizer import OptimizerConfig, ema_update, learning_rate, make_optimizer
from mvader_jax.train.state import TrainState, labels
from mvader_jax.train.step import make_train_step

GROUPS = {"a": Group("model/a/.*", 0.1), "b": Group("model/b/.*", 0.01)}
OWNERS = {"model/a/kernel": "a", "model/b/bias": "b"}


def stage(**changes: Any) -> Stage:
    options = {"optimizer": OptimizerConfig(clip_norm=0.0, weight_decay=0.0, ema_decay=0.9), **changes}
    return Stage(Autoencoding(), GROUPS, 10, 8, DataConfig(), **options)


def loss_fn(components: Any, batch: Any, key: jax.Array, row_groups: int) -> Any:
    """Mean over rows of (x a + b - y)^2; `row_groups` is what the objective is told."""
    model = components["model"]
    error = batch["x"] @ model["a"]["kernel"] + model["b"]["bias"] - batch["y"]
    return jnp.mean(error**2), {"rows": jnp.stack([jnp.float32(len(error)), jnp.float32(row_groups)])}


def begin(config: Stage) -> tuple[Any, TrainState, dict[str, np.ndarray]]:
    trainable = {"model": {"a": {"kernel": jnp.array([1.0, -2.0])}, "b": {"bias": jnp.array(0.5)}}}
    rates = {name: group.learning_rate for name, group in GROUPS.items()}
    optimizer = make_optimizer(config.optimizer, rates, config.steps, trainable, labels(trainable, OWNERS))
    state = TrainState(
        jnp.int32(0),
        jax.random.key(0),
        trainable,
        {},
        optimizer.init(trainable),
        jax.tree.map(jnp.copy, trainable),
        jnp.float32(jnp.nan) if config.max_loss_ratio else None,
    )
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, 2)).astype(np.float32), "y": rng.normal(size=8).astype(np.float32)}
    return optimizer, state, batch


def values(state: TrainState) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves((state.trainable, state.opt_state, state.ema))]


def test_the_update_is_adams_and_each_group_has_its_rate_and_norm() -> None:
    config = stage()
    optimizer, state, batch = begin(config)
    step = jax.jit(make_train_step(loss_fn, optimizer, config, OWNERS, 1))
    new, metrics = step(state, batch)
    error = batch["x"] @ [1.0, -2.0] + 0.5 - batch["y"]
    gradient = 2 * batch["x"].T @ error / 8
    np.testing.assert_allclose(metrics["gradient_norm/a"][0], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm/b"][0], abs(2 * error.mean()), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], [np.mean(error**2), 1.0], rtol=1e-5)
    # Adam's first step is its rate times the sign.
    np.testing.assert_allclose(
        new.trainable["model"]["a"]["kernel"], [1.0, -2.0] - 0.1 * np.sign(gradient), rtol=1e-5
    )
    np.testing.assert_allclose(
        new.trainable["model"]["b"]["bias"], 0.5 - 0.01 * np.sign(error.mean()), rtol=1e-5
    )
    assert int(new.step) == 1


def test_muon_moves_every_direction_alike_and_leaves_the_other_groups_to_adam() -> None:
    rng = np.random.default_rng(0)
    trainable = {"a": {"kernel": jnp.zeros((5, 3))}, "b": {"kernel": jnp.zeros((5, 3))}}
    groups = {"a": {"kernel": "a"}, "b": {"kernel": "b"}}
    config = OptimizerConfig(muon=("a",), clip_norm=0.0, weight_decay=0.0)
    optimizer = make_optimizer(config, {"a": 0.02, "b": 0.01}, 10, trainable, groups)
    left, _ = np.linalg.qr(rng.normal(size=(5, 3)))
    right, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    # Directions of gradients 100 times apart.
    gradient = (left * [1.0, 0.1, 0.01] @ right).astype(np.float32)
    gradients = {"a": {"kernel": gradient}, "b": {"kernel": gradient}}
    moved, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
    strengths = -np.diag(left.T @ np.asarray(moved["a"]["kernel"]) @ right.T) / 0.02
    assert np.all((strengths > 0.5) & (strengths < 1.5))
    np.testing.assert_allclose(moved["b"]["kernel"], -0.01 * np.sign(gradient), rtol=1e-3)


@pytest.mark.parametrize(
    ("muon", "message"),
    [("c", "optimizer.muon names 'c'; the stage's groups are a, b"), ("b", "group 'b' has 1 dimensions")],
)
def test_muon_is_refused_where_it_cannot_be(muon: str, message: str) -> None:
    trainable = {"a": {"kernel": jnp.zeros((5, 3))}, "b": {"bias": jnp.zeros(3)}}
    groups = {"a": {"kernel": "a"}, "b": {"bias": "b"}}
    with pytest.raises(UserError, match=message):
        make_optimizer(OptimizerConfig(muon=(muon,)), {"a": 0.1, "b": 0.1}, 10, trainable, groups)


@pytest.mark.parametrize("shape", [MeshConfig(), MeshConfig(data=2), MeshConfig(data=2, fsdp=2)])
def test_microbatches_give_the_gradient_of_the_whole(shape: MeshConfig) -> None:
    devices = shape.data * shape.fsdp
    mesh = make_mesh(shape, jax.devices()[:devices])
    whole = stage()
    optimizer, state, batch = begin(whole)
    expected, _ = jax.jit(make_train_step(loss_fn, optimizer, whole, OWNERS, 1))(state, batch)
    config = stage(accumulate=2)
    placed = {name: jax.device_put(x, batch_sharding(mesh, x.ndim)) for name, x in batch.items()}
    step = jax.jit(make_train_step(loss_fn, optimizer, config, OWNERS, 4), out_shardings=replicated(mesh))
    new, metrics = step(jax.device_put(begin(config)[1], replicated(mesh)), placed)
    for a, b in zip(values(new), values(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
    # Two microbatches of four rows, each told of its four groups; every row once.
    np.testing.assert_array_equal(metrics["rows"], [8.0, 8.0])
    assert metrics["loss"][1] == 2.0


@pytest.mark.parametrize("where", ["x", "y"])
def test_a_bad_update_changes_nothing_but_the_counter(where: str) -> None:
    config = stage()
    optimizer, state, batch = begin(config)
    step = jax.jit(make_train_step(loss_fn, optimizer, config, OWNERS, 1))
    bad = {
        **batch,
        where: np.where(np.arange(8).reshape(-1, *[1] * (batch[where].ndim - 1)) == 3, np.inf, batch[where]),
    }
    new, metrics = step(state, bad)
    assert metrics["bad_updates"][0] == 1.0 and int(new.step) == 1
    for a, b in zip(values(new), values(state), strict=True):
        np.testing.assert_array_equal(a, b)
    # The next good batch trains on.
    newer, metrics = step(new, batch)
    assert metrics["bad_updates"][0] == 0.0
    assert not np.array_equal(newer.trainable["model"]["a"]["kernel"], [1.0, -2.0])


def test_an_exploding_loss_is_a_bad_update() -> None:
    config = stage(max_loss_ratio=3.0)
    optimizer, state, batch = begin(config)
    step = jax.jit(make_train_step(loss_fn, optimizer, config, OWNERS, 1))
    # The first loss has nothing to be compared with; it becomes the mean.
    state, metrics = step(state, batch)
    assert metrics["bad_updates"][0] == 0.0
    np.testing.assert_allclose(state.loss_mean, metrics["loss"][0])
    mean = float(state.loss_mean)
    state, metrics = step(state, {**batch, "y": batch["y"] + 50})
    assert metrics["bad_updates"][0] == 1.0 and float(metrics["loss_mean"][0]) == mean
    assert float(state.loss_mean) == mean
    state, metrics = step(state, batch)
    assert metrics["bad_updates"][0] == 0.0
    np.testing.assert_allclose(state.loss_mean, mean + 0.01 * (metrics["loss"][0] - mean), rtol=1e-5)


def test_the_average_warms_up() -> None:
    config = OptimizerConfig(ema_decay=0.5)
    average, expected = jnp.float32(7.0), 7.0
    for number, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]):
        average = ema_update(config, average, jnp.float32(value), jnp.int32(number))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average, expected, rtol=1e-6)
    assert ema_update(OptimizerConfig(ema_decay=0.0), average, jnp.float32(3.0), jnp.int32(0)) == 3.0


def test_rates_warm_up_and_decay() -> None:
    rate = learning_rate(OptimizerConfig(warmup_steps=4, decay="linear", final_fraction=0.5), 0.8, 12)
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose([rate(4), rate(8), rate(12), rate(99)], [0.8, 0.6, 0.4, 0.4], rtol=1e-6)
    cosine = learning_rate(OptimizerConfig(decay="cosine", decay_steps=10), 1.0, 100)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10), cosine(50)], [1, 0.5, 0, 0], atol=1e-6)
