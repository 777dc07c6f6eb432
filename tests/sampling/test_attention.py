"""Attention seen while pictures are drawn: the UNet's own, and nothing else changes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest

import mvader_jax as mv
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.attention_maps import element_maps
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.unet_blocks import ATTENTION
from mvader_jax.sampling.attention import Attention
from mvader_jax.sampling.pictures import Pictures

SHADES = np.random.default_rng(0).integers(0, 255, (20, 16, 3), np.uint8)
PROMPT = ["a red hat", mv.Image(SHADES, 0.25)]


@pytest.fixture(scope="module")
def pipe() -> mv.Pipeline:
    return mv.Pipeline(micro.bundle(micro.NANO))


def test_one_call_is_the_unets_own(pipe: mv.Pipeline) -> None:
    seen = pipe.attend(PROMPT, seed=3, steps=1)
    model = pipe.model.require(UNetConfig)
    condition = pipe.embed_batch(pipe.bundle.to_batch([PROMPT], elements=True))
    latents = initial_noise(jnp.array([3], jnp.uint32), jnp.array([0]), (8, 8, 4))
    t = SAMPLERS["ddim"].levels(pipe.model.require(ScheduleConfig), 1).timesteps
    params = {"params": pipe.bundle.components["unet"]}
    _, left = UNet(model).apply(params, latents, jnp.asarray(t), condition, mutable=[ATTENTION])
    np.testing.assert_allclose(seen.places, np.asarray(element_maps(left, (8, 8)))[:, :2], atol=1e-5)
    np.testing.assert_allclose(seen.shares.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(seen.asked, [0.8, 0.2])
    assert seen.maps.shape == (1, 2, 8, 8) and seen.elements[1].weight == 0.25


def test_looking_changes_no_picture(pipe: mv.Pipeline) -> None:
    """Also where thetas move, and where guidance acts in an interval alone: one call is of half the rows."""
    asked: dict[str, Any] = {
        "seed": 3,
        "steps": 3,
        "num_images": 2,
        "balance": "attention",
        "guidance_interval": "0.5,9",
    }
    seen, drawn = pipe.attend(PROMPT, **asked), pipe(PROMPT, **asked)
    for one, other in zip(seen.pictures, drawn, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
        assert one.info["mvader"] == other.info["mvader"]
    assert seen.places.shape == (2, 2, 8, 8) and np.abs(seen.shares - [0.8, 0.2]).max() < 0.2


def test_a_sheet_says_where_and_how_much() -> None:
    """The right half of the picture looked at the second element alone."""
    places = np.zeros((1, 2, 4, 4), np.float32)
    places[0, 0, :, :2], places[0, 1, :, 2:] = 1, 0.5
    picture = PIL.Image.new("RGB", (32, 32), (100, 100, 100))
    seen = Attention(Pictures([picture]), (mv.Text("a red hat"), mv.Text("a cat", 0)), places)
    np.testing.assert_allclose(seen.shares, [[0.5, 0.25]])
    assert seen.asked.tolist() == [1, 0]
    over = np.asarray(seen.overlay(0, 1))
    assert over[16, 0].tolist() == [100, 100, 100] and over[16, 31].tolist() == [216, 73, 25]
    sheet = seen.sheet()
    assert sheet.width > 3 * 192 and sheet.height > 192 + 20


def test_what_has_no_attention_is_one_sentence(pipe: mv.Pipeline) -> None:
    with pytest.raises(mv.UserError, match="the null prompt has no elements"):
        pipe.attend(None)  # type: ignore[arg-type]
    with pytest.raises(mv.UserError, match="attention is seen of every call"):
        pipe.attend("a cat", reuse=2)
