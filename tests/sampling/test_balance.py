"""Automatic theta through a whole model: what it reaches, what it leaves alone, and what it compiles."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.condition import Condition
from mvader_jax.diffusion.balance import under
from mvader_jax.errors import UserError
from mvader_jax.models.attention_maps import element_shares
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.unet_blocks import ATTENTION
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.generate import Draws, Prompted
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.sampling.steps import begin, go_on

PICTURE = np.full((8, 8, 3), 90, np.uint8)
PARTS = [("a red circle", 0.5), mv.Image(PICTURE)]
HOW: dict[str, Any] = {"steps": 4, "sampler": "ddim", "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle(micro.NANO))


def array(pictures: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def test_elements_get_the_shares_of_their_weights(pipe: Pipeline) -> None:
    """Of the prompt and of a negative prompt, each its own; and beside a picture whose prompt asks for nothing."""
    bundle = pipe.bundle
    settings = SamplingSettings(steps=20, sampler="ddim", negative_strength=0.5)
    prompts = [mv.Prompt.of(PARTS, balance="attention"), mv.Prompt.of(PARTS)]
    negative = bundle.to_batch([[PICTURE, ("a cross", 3.0)]] * 2, balance="attention")
    batches = bundle.to_batch(prompts), bundle.to_batch([None])
    draws = Draws.of(
        settings,
        Prompted(batches[0]),
        Prompted(batches[1], np.zeros(2, np.int32)),
        np.arange(2),
        negative=Prompted(negative),
    )
    fixed = {"model": bundle.model, "static": settings.static(bundle.model), "dtype": "float32"}
    draws, state, calls = jax.jit(functools.partial(begin, **fixed))(bundle.components, draws)
    _, logs = state
    assert logs.shape == (3, 2, 4) and not logs.any()
    go = jax.jit(functools.partial(go_on, **fixed))
    (latents, logs), _, _ = go({"unet": bundle.components["unet"]}, draws, state, np.int32(0), calls)
    unet = UNet(bundle.model.require(UNetConfig))

    def shares(condition: Condition, logs: jax.Array) -> np.ndarray:
        _, left = unet.apply(
            {"params": bundle.components["unet"]},
            latents,
            jnp.zeros(2),
            under(condition, logs),
            mutable=[ATTENTION],
        )
        got = np.asarray(element_shares(left))
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)  # an S-MAGMA prompt is its elements
        return got

    shown, against = draws.prompt.prompts, draws.negative.prompts
    third = [1 / 3, 2 / 3, 0, 0]
    assert np.abs(shares(shown, 0 * logs[2])[0] - third).max() > 0.1
    np.testing.assert_allclose(shares(shown, logs[2])[0], third, atol=0.02)
    np.testing.assert_allclose(shares(against, logs[1]), [[0.25, 0.75, 0, 0]] * 2, atol=0.02)
    assert not logs[2, 1].any() and not logs[0].any()  # the null prompt's come first


def test_the_picture_is_the_same_whatever_is_drawn_beside_it_and_watched_or_not(pipe: Pipeline) -> None:
    one = array(pipe(PARTS, balance="attention", seed=3, **HOW))
    plain = array(pipe(PARTS, seed=3, **HOW))
    assert np.abs(one - plain).max() > 2
    four = array(pipe(PARTS, balance="attention", seed=3, num_images=4, **HOW))
    assert np.abs(four[:1] - one).max() <= 1
    watched = array(pipe(PARTS, balance="attention", seed=3, callback=lambda _: None, **HOW))
    assert np.abs(watched - one).max() <= 1
    lines: list[Any] = [
        {"prompt": PARTS, "balance": "attention", "seed": 3},
        {"prompt": PARTS, "seed": 3},
        {"prompt": ["a cross", PICTURE, "in red"], "balance": "attention"},
    ]
    many = pipe.batch(lines, batch_size=2, **HOW)
    assert np.abs(array(many[0]) - one).max() <= 1 and np.abs(array(many[1]) - plain).max() <= 1


def test_it_is_one_program_whatever_the_weights_and_the_number_of_elements() -> None:
    pipe = Pipeline(micro.bundle(micro.NANO))
    how = {**HOW, "steps": 1}
    pipe(PARTS, balance="attention", **how)
    pipe(["a red", ("circle", 2.0), mv.Image(PICTURE, 0.1)], balance="attention", **how)
    pipe(mv.Prompt.of([mv.Image(PICTURE), ("a red circle", 0.0)], balance="attention"), **how)
    assert pipe.compiled == 1


def test_a_mesh_draws_the_same() -> None:
    bundle = micro.bundle(micro.NANO)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    how = {"balance": "attention", "num_images": 2, "negative": ["a cross", PICTURE], **HOW}
    expected = array(Pipeline(bundle)(PARTS, **how))
    assert np.abs(array(Pipeline(bundle, mesh=mesh)(PARTS, **how)) - expected).max() <= 1


def test_a_prompt_of_one_element_has_nothing_to_balance(pipe: Pipeline) -> None:
    drawn = array(pipe("a red circle", balance="attention", **HOW))
    assert np.abs(drawn - array(pipe("a red circle", **HOW))).max() <= 1


def test_it_is_kept_with_the_picture(pipe: Pipeline) -> None:
    (picture,) = pipe(mv.Prompt.of(PARTS, balance="attention"), **HOW)
    assert picture.info["mvader"]["balance"] == "attention"
    with pytest.raises(UserError, match="their site is decoder"):
        pipe(mv.Prompt.of(PARTS, balance="attention"), site="decoder", **HOW)


def test_a_unet_of_few_steps_balances_too() -> None:
    """It has no half of the null prompt: the thetas of the prompt's elements are all there are."""
    unet = dataclasses.replace(micro.NANO.require(UNetConfig), time_cond_proj_dim=8)
    bundle = micro.bundle(dataclasses.replace(micro.NANO, unet=unet))
    settings = SamplingSettings(steps=2, sampler="lcm")
    prompts = [Prompted(bundle.to_batch([one], balance="attention")) for one in (PARTS, None)]
    fixed = {"model": bundle.model, "static": settings.static(bundle.model), "dtype": "float32"}
    start, go = (jax.jit(functools.partial(part, **fixed)) for part in (begin, go_on))
    draws, state, calls = start(bundle.components, Draws.of(settings, *prompts, np.arange(1)))
    (_, logs), _, _ = go({"unet": bundle.components["unet"]}, draws, state, np.int32(0), calls)
    assert logs.shape == (1, 1, 4) and logs[0, 0, 1] > 0.1 and not logs[0, 0, 2:].any()
    np.testing.assert_allclose(logs[0, 0, 0], -logs[0, 0, 1], atol=1e-5)


def test_it_does_not_go_with_calls_in_part(pipe: Pipeline) -> None:
    for prompt, more in ((PARTS, {"balance": "attention"}), (mv.Prompt.of(PARTS, balance="attention"), {})):
        with pytest.raises(UserError, match="balance attention reads the attention of every call, but reuse"):
            pipe(prompt, reuse=2, **more, **HOW)
