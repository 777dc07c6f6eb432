"""Training in coordinates where the condition varies alike in every direction."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.embed import embed
from mvader_jax.train.optim.optimizer import OptimizerConfig, make_optimizer
from mvader_jax.train.optim.whitening import FLOOR, measure_whitening, whitening_matrix
from mvader_jax.train.run import stage_loader


def test_the_matrix_whitens_and_stretches_nothing_without_end() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    values = np.array([30.0, 4.0, 1.0, 0.5, 0.1, 1e-7, 0.0])
    moment = turn * values @ turn.T
    matrix = whitening_matrix(moment)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    white = np.diag(turn.T @ matrix @ moment @ matrix @ turn)
    np.testing.assert_allclose(white[:5], 1.0, rtol=0.06)
    # The last two directions hold nothing to speak of; they are stretched to the floor and no further.
    limit = (FLOOR * values.mean()) ** -0.5
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix)[-2:], limit, rtol=1e-4)


def test_it_is_measured_on_what_the_stage_reads() -> None:
    config = micro.nano_config()
    stage = dataclasses.replace(config.stage("diffusion"), batch_size=32)
    bundle = micro.bundle(micro.NANO)
    measured = measure_whitening(bundle.model, bundle.components, stage, iter(stage_loader(bundle, stage)))
    # By hand: every token of 40 batches that is not padding, one prompt after the other.
    batches = iter(stage_loader(bundle, stage))
    states: list[np.ndarray] = []
    embedded = jax.jit(lambda prompts: embed(bundle.model, bundle.components, prompts))
    while sum(map(len, states)) < 256 * 32:
        batch = next(batches)
        for name in ("image_prompt", "text_prompt"):
            condition = embedded(batch[name])
            kept = np.asarray(condition.log_weights) > -1.0
            assert name == "image_prompt" or not kept.all()
            states.append(np.asarray(condition.hidden, np.float64)[kept])
    flat = np.concatenate(states)
    np.testing.assert_allclose(measured, whitening_matrix(flat.T @ flat / len(flat)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("muon", [(), ("a",)])
def test_a_whitened_group_moves_as_its_coordinates_would(muon: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    half = rng.normal(size=(5, 5))
    matrix = whitening_matrix(half @ half.T)
    inverse = np.linalg.inv(matrix)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    groups = {"a": {"kernel": "a"}, "b": {"kernel": "b"}}
    rates = {"a": 0.02, "b": 0.01}
    plain = OptimizerConfig(muon=muon, clip_norm=0.0, weight_decay=0.1)
    white = dataclasses.replace(plain, whiten=("a",))

    def run(config: OptimizerConfig, params: Any, gradient: Any, steps: int = 4) -> Any:
        optimizer = make_optimizer(config, rates, 10, params, groups, matrix)
        state = optimizer.init(params)
        for _ in range(steps):
            updates, state = optimizer.update(jax.tree.map(gradient, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    # The gradient of |W - 1|^2 / 2 for W, and for V where W = matrix V.
    params = {"a": {"kernel": start}, "b": {"kernel": start}}
    moved = run(white, params, lambda w: w - 1.0)
    turned = {"a": {"kernel": jnp.asarray(inverse @ start, jnp.float32)}, "b": {"kernel": start}}
    expected = run(plain, turned, lambda v: matrix @ (matrix @ v - 1.0))
    np.testing.assert_allclose(
        moved["a"]["kernel"], matrix @ np.asarray(expected["a"]["kernel"]), rtol=2e-4, atol=2e-5
    )
    # The other group is not turned.
    np.testing.assert_allclose(moved["b"]["kernel"], run(plain, params, lambda w: w - 1.0)["b"]["kernel"])


def test_it_learns_what_hardly_varies() -> None:
    """A target in directions of a thirtieth of the input's deviation: whitened it is learnt, else not."""
    rng = np.random.default_rng(2)
    inputs = (rng.normal(size=(512, 8)) * np.array([3, 1, 1, 1, 0.3, 0.1, 0.03, 0.03])).astype(np.float32)
    target = inputs[:, -2:] @ rng.normal(size=(2, 4)).astype(np.float32) * 33
    params = {"a": {"kernel": jnp.zeros((8, 4))}}
    matrix = whitening_matrix(inputs.T.astype(np.float64) @ inputs / len(inputs))
    left = {}
    for whiten in ((), ("a",)):
        config = OptimizerConfig(muon=("a",), whiten=whiten, weight_decay=0.0)
        optimizer = make_optimizer(config, {"a": 0.02}, 200, params, {"a": {"kernel": "a"}}, matrix)

        def loss(p: Any) -> jax.Array:
            return jnp.mean((inputs @ p["a"]["kernel"] - target) ** 2)

        @jax.jit
        def step(p: Any, state: Any, optimizer: optax.GradientTransformation = optimizer) -> Any:
            updates, state = optimizer.update(jax.grad(loss)(p), state, p)
            return optax.apply_updates(p, updates), state

        p, state = params, optimizer.init(params)
        for _ in range(200):
            p, state = step(p, state)
        left[whiten] = float(loss(p) / loss(params))
    assert left["a",] < 0.1 < 0.8 < left[()], left


def test_a_run_goes_on_with_the_matrix_that_it_began_with() -> None:
    params = {"a": {"kernel": jnp.ones((3, 2))}}
    config = OptimizerConfig(whiten=("a",), clip_norm=0.0, weight_decay=0.0)

    def optimizer(matrix: np.ndarray) -> optax.GradientTransformation:
        return make_optimizer(config, {"a": 0.1}, 10, params, {"a": {"kernel": "a"}}, matrix)

    first, second = np.diag([1.0, 2.0, 4.0]), np.eye(3)
    state = optimizer(first).init(params)
    gradient = {"a": {"kernel": jnp.ones((3, 2))}}
    moved, _ = optimizer(second).update(gradient, state, params)
    np.testing.assert_allclose(moved["a"]["kernel"][:, 0], [-0.1, -0.2, -0.4], rtol=1e-5)


@pytest.mark.parametrize(
    ("whiten", "message"),
    [
        ("c", "optimizer.whiten names 'c'; the stage's groups are a, b"),
        ("b", r"\[3, ...\]; b/kernel of group 'b' is \[5, 3\]"),
    ],
)
def test_it_is_refused_where_it_cannot_be(whiten: str, message: str) -> None:
    trainable = {"a": {"kernel": jnp.zeros((3, 3))}, "b": {"kernel": jnp.zeros((5, 3))}}
    groups = {"a": {"kernel": "a"}, "b": {"kernel": "b"}}
    with pytest.raises(UserError, match=message):
        make_optimizer(
            OptimizerConfig(whiten=(whiten,)), {"a": 0.1, "b": 0.1}, 10, trainable, groups, np.eye(3)
        )


def test_an_objective_without_a_condition_has_none_to_whiten() -> None:
    stage = micro.nano_config().stage("language")
    with pytest.raises(
        UserError, match=r"optimizer\.whiten is for networks that read a condition; captioning trains none"
    ):
        measure_whitening(micro.NANO, {}, stage, iter(()))
