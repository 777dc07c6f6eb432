"""What the one program that draws computes in each step, and what it computes once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.condition import Condition
from mvader_jax.diffusion.guidance import alone
from mvader_jax.models.unet import UNet, UNetConfig, cross_attention_paths, with_keys_values
from mvader_jax.sampling.generate import Draws, Prompted, generate
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.sampling.steps import begin, go_on
from mvader_jax.train.flops import count_flops

PICTURES = 3


@pytest.fixture(scope="module")
def flops_of_a_step() -> tuple[float, int]:
    """FLOPs that one more step of three guided pictures of one prompt costs, and positions a prompt has."""
    bundle = micro.bundle()
    prompt = bundle.to_batch(["a large solid red circle on the left"])
    null = bundle.to_batch([None])

    def flops(steps: int) -> float:
        settings = SamplingSettings(steps=steps, sampler="ddim")
        rows = np.zeros(PICTURES, np.int32)
        draws = Draws.of(settings, Prompted(prompt, rows), Prompted(null, rows), np.arange(PICTURES))
        static = settings.static(bundle.model, from_image=False)
        walk = functools.partial(generate, model=bundle.model, static=static, dtype="float32")
        return count_flops(jax.make_jaxpr(walk)(bundle.components, draws))

    length = max(prompt.token_ids.shape[1], null.token_ids.shape[1])
    return flops(11) - flops(10), length


def test_keys_and_values_are_made_before_the_steps(flops_of_a_step: tuple[float, int]) -> None:
    """A step costs what the UNet costs for twice the pictures, less every product of `to_k` and `to_v`."""
    step, length = flops_of_a_step
    config = micro.MODEL.require(UNetConfig)
    rows, width = 2 * PICTURES, config.cross_attention_dim
    size = config.sample_size
    latents = jnp.zeros((rows, size, size, config.in_channels))
    condition = Condition(jnp.zeros((rows, length, width)), jnp.zeros((rows, length)))
    params = micro.bundle(micro.MODEL, "unet").components["unet"]
    whole = count_flops(
        jax.make_jaxpr(UNet(config).apply)({"params": params}, latents, jnp.zeros(rows), condition)
    )
    out = [params_at(params, path)["to_k"]["kernel"].shape[1] for path in cross_attention_paths(config)]
    assert step == whole - 2 * 2 * rows * length * width * sum(out)


def test_the_compiled_call_computes_and_reads_no_keys_and_values() -> None:
    """FLOPs and bytes of a step's call as XLA compiled it, keys and values made in it and before it."""
    config = micro.MODEL.require(UNetConfig)
    params, length, width = (
        micro.bundle(micro.MODEL, "unet").components["unet"],
        40,
        config.cross_attention_dim,
    )
    condition = Condition(jnp.zeros((PICTURES, length, width)), jnp.zeros((PICTURES, length)))

    def call(params: Any, latents: jax.Array, condition: Condition) -> jax.Array:
        eps: Any = functools.partial(UNet(config).apply, {"params": params})
        return alone(eps, condition)(latents, jnp.int32(9))

    latents = jnp.zeros((PICTURES, config.sample_size, config.sample_size, config.in_channels))
    ready = with_keys_values(config, params, condition, jnp.float32)
    costs: list[Any] = [
        jax.jit(call).lower(params, latents, one).compile().cost_analysis() for one in (condition, ready)
    ]
    out = [params_at(params, path)["to_k"]["kernel"].shape[1] for path in cross_attention_paths(config)]
    made = 2 * 2 * PICTURES * length * width * sum(out)
    assert costs[0]["flops"] - costs[1]["flops"] == pytest.approx(made, rel=0.01)
    kernels = 2 * width * sum(out) * 4
    assert costs[0]["bytes accessed"] - costs[1]["bytes accessed"] > kernels


def test_steps_taken_in_pieces_read_no_keys_and_values_again() -> None:
    bundle = micro.bundle(micro.NANO)
    settings = SamplingSettings(steps=2, sampler="ddim")
    prompts = [Prompted(bundle.to_batch([text])) for text in ("a red circle", None)]
    draws = Draws.of(settings, *prompts, np.arange(1))
    fixed = {"model": bundle.model, "static": settings.static(bundle.model), "dtype": "float32"}
    draws, state, calls = begin(bundle.components, draws, **fixed)
    unread = jax.tree.map(lambda x: x, bundle.components["unet"])
    for path in cross_attention_paths(bundle.model.require(UNetConfig)):
        for name in ("to_k", "to_v"):
            params_at(unread, path)[name]["kernel"] *= jnp.nan
    _, latents, _ = go_on({"unet": unread}, draws, state, np.int32(0), calls, **fixed)
    assert np.isfinite(latents).all()


def params_at(params: dict, path: str) -> dict:
    return functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
