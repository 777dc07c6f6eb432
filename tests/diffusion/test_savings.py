"""Guidance in an interval and reuse of deep features, against walks in Python that choose call by call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.condition import Condition
from mvader_jax.diffusion.guidance import alone, guided
from mvader_jax.diffusion.levels import Levels
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.savings import Reuse, guided_within, guides, sigmas
from mvader_jax.models.unet import UNet, UNetConfig

CONFIG = micro.MODEL.require(UNetConfig)
UNET = UNet(CONFIG)
SCHEDULE = micro.MODEL.schedule
SCALE, ROWS = 3.0, 2
PARAMS = {"params": micro.bundle(micro.MODEL, "unet").components["unet"]}
PROMPT, NULL = (
    Condition(jax.random.normal(jax.random.key(i), (ROWS, 4 - i, 48)), jnp.zeros((ROWS, 4 - i)))
    for i in (0, 1)
)
LATENTS = jax.random.normal(jax.random.key(2), (ROWS, 8, 8, 4))


def model(x: Any, t: Any, condition: Condition, deep: Any = None) -> tuple[Any, Any]:
    out, left = UNET.apply(PARAMS, x, t, condition, deep, mutable=["intermediates"])
    return out, next(iter(jax.tree.leaves(left)), None)


def saving(levels: Levels, interval: tuple[float, float] | None, every: int) -> tuple[Any, Levels]:
    """(denoise, levels) as the package has them."""
    where = None if interval is None else guides(levels, interval)
    reuse = Reuse(model, every) if every > 1 else None
    eps: Any = reuse.eps if reuse else lambda *inputs: model(*inputs)[0]
    whole, cheap = guided(eps, PROMPT, NULL, SCALE), alone(eps, PROMPT)
    if reuse:
        return reuse.denoise(whole, cheap, LATENTS, where), dataclasses.replace(levels, kept=reuse.kept)
    return (whole if where is None else guided_within(whole, cheap, where)), levels


@pytest.fixture(scope="module")
def call() -> Callable[..., Any]:
    """The model, compiled for each way in which it is called."""
    return jax.jit(model)


def slow(
    call: Any, levels: Levels, interval: tuple[float, float] | None, every: int, listed: list[str]
) -> Any:
    """The same as a function that remembers, one condition at a time. listed: how each call went."""
    low, high = interval or (0.0, np.inf)
    deep: dict[str, Any] = {}
    age = every

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal age
        alpha = levels.table[int(t)]
        names = ["prompt", "null"] if low < ((1 - alpha) / alpha) ** 0.5 <= high else ["prompt"]
        whole = age >= every or not set(names) <= set(deep)
        if whole:
            age = 0
            deep.clear()
        age += 1
        out = {}
        for name in names:
            condition = {"prompt": PROMPT, "null": NULL}[name]
            out[name], left = call(x, jnp.full(ROWS, t), condition, None if whole else deep[name])
            deep[name] = left if whole else deep[name]
        listed.append(f"{'whole' if whole else 'outer'} {len(names)}")
        base = out.get("null", out["prompt"])
        return base + (SCALE if len(names) == 2 else 1.0) * (out["prompt"] - base)

    return denoise


def one_by_one(calls: Any, one: Callable[[Any, Any], Any], carry: Any) -> Any:
    for i in range(int(calls)):
        carry = one(jnp.int32(i), carry)
    return carry


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not SAMPLERS[name].distilled])
def test_every_sampler_saves_as_the_slow_walk_does(name: str, call: Any) -> None:
    """The steps, the calls without guidance at both ends, and those from features of before."""
    levels = SAMPLERS[name].levels(SCHEDULE, 7)
    interval, every = (0.5, 4.0), 3
    listed: list[str] = []
    denoise = slow(call, levels, interval, every, listed)
    expected = SAMPLERS[name](denoise, LATENTS, dataclasses.replace(levels, loop=one_by_one))
    cheap, kept = saving(levels, interval, every)
    out = jax.jit(lambda x: SAMPLERS[name](cheap, x, kept))(LATENTS)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert {"whole 1", "outer 1", "whole 2", "outer 2"} == set(listed)
    assert listed[0] == "whole 1" and len(listed) == SAMPLERS[name].calls(7)


@pytest.mark.parametrize(("interval", "every"), [(None, 1), ((0.2, 4.0), 1), (None, 2), ((0.2, 4.0), 2)])
def test_what_is_saved_is_not_in_the_compiled_program(interval: Any, every: int) -> None:
    """The FLOPs of a walk whose loop is unrolled, so that the compiler drops branches not taken: those of its calls."""
    levels = SAMPLERS["ddim"].levels(SCHEDULE, 5)
    denoise, kept = saving(levels, interval, every)
    flops = compiled(
        lambda x: SAMPLERS["ddim"](denoise, x, dataclasses.replace(kept, loop=unrolled)), LATENTS
    )
    listed: list[str] = []
    walk = slow(lambda x, *_: (x, x), levels, interval, every, listed)
    SAMPLERS["ddim"](walk, LATENTS, dataclasses.replace(levels, loop=one_by_one))
    costs = cost_of_a_call()
    assert flops == pytest.approx(sum(costs[one] for one in listed), rel=0.02)
    assert costs["whole 1"] == pytest.approx(costs["whole 2"] / 2, rel=0.05)
    assert costs["outer 2"] < 0.4 * costs["whole 2"]


def unrolled(calls: Any, one: Callable[[Any, Any], Any], carry: Any) -> Any:
    del calls
    for i in range(5):
        carry = one(jnp.int32(i), carry)
    return carry


def compiled(function: Any, *inputs: Any) -> float:
    cost = jax.jit(function).lower(*inputs).compile().cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def cost_of_a_call() -> dict[str, float]:
    t = jnp.int32(500)
    eps: Any = lambda *inputs: model(*inputs)[0]  # noqa: E731
    x, deep = LATENTS, jax.eval_shape(model, LATENTS, jnp.zeros(ROWS), PROMPT)[1]

    def outer(rows: int) -> float:
        given = jnp.zeros((rows * ROWS, *deep.shape[1:]))
        made: Any = lambda x, t, c: model(x, t, c, given)[0]  # noqa: E731
        denoise = guided(made, PROMPT, NULL, SCALE) if rows == 2 else alone(made, PROMPT)
        return compiled(denoise, x, t)

    return {
        "whole 2": compiled(guided(eps, PROMPT, NULL, SCALE), x, t),
        "whole 1": compiled(alone(eps, PROMPT), x, t),
        "outer 2": outer(2),
        "outer 1": outer(1),
    }


def test_the_interval_is_in_sigma_low_excluded() -> None:
    levels = SAMPLERS["ddim"].levels(SCHEDULE, 5)
    sigma = sigmas(levels)
    assert guides(levels, (float(sigma[300]), float(sigma[600]))).nonzero()[0].tolist() == list(
        range(301, 601)
    )
