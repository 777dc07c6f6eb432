"""Weights, factors and negative prompts through a whole model: embedder, UNet and guidance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.condition import Condition
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.sampling.pipeline import Pipeline

#: [layers, heads] of micro's decoder and UNet.
DECODER, CROSS = (2, 2), (7, 2)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle())


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render(scene_at(0, 3))


def eps(pipe: Pipeline, prompt: Any, **options: Any) -> np.ndarray:
    """The UNet's prediction under a prompt, padded so that every prompt meets one compiled program."""
    batch = pipe.bundle.to_batch([prompt], length=32, num_images=1, **options)
    batch = batch.replace(
        factors=np.ones((1, *DECODER), np.float32) if batch.factors is None else batch.factors,
        condition_factors=np.ones((1, *CROSS), np.float32)
        if batch.condition_factors is None
        else batch.condition_factors,
    )
    condition = pipe._embed(pipe.bundle.components, batch)
    latents = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    return np.asarray(pipe.denoise(latents, 500, condition))


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= 1e-5 * np.abs(other).max())


def test_an_element_of_weight_0_at_the_cross_attention_is_not_there(
    pipe: Pipeline, picture: np.ndarray
) -> None:
    # Behind the text, so that the text's positions and hidden states agree.
    with_it = eps(pipe, [mv.Text("a red circle"), mv.Image(picture, 0.0)], site="cross_attention")
    assert close(with_it, eps(pipe, "a red circle"))
    assert not close(eps(pipe, [mv.Text("a red circle"), mv.Image(picture)]), with_it)


@pytest.mark.parametrize("site", ["decoder", "cross_attention"])
def test_factors_act_at_their_site(pipe: Pipeline, picture: np.ndarray, site: str) -> None:
    def prompt(weight: float, factor: float | None) -> mv.Prompt:
        factors = {} if factor is None else {f"{site}_factors": [[factor]]}
        return mv.Prompt([mv.Image(picture, weight), mv.Text("a red circle")], site, **factors)

    plain, half = eps(pipe, prompt(1.0, None)), eps(pipe, prompt(0.5, None))
    assert not close(half, plain)
    assert close(eps(pipe, prompt(0.5, 0.0)), plain)
    assert close(eps(pipe, prompt(0.5, 1.0)), half)
    assert close(eps(pipe, prompt(0.5, 2.0)), eps(pipe, prompt(0.25, None)))
    # One layer and head alone is neither.
    shape = DECODER if site == "decoder" else CROSS
    one = np.ones(shape)
    one[-1, -1] = 0.0
    single = eps(pipe, mv.Prompt(prompt(0.5, None).elements, site, **{f"{site}_factors": one}))
    assert not close(single, half) and not close(single, plain)
    # At the other site there are no weights for factors to act on.
    other = "cross_attention" if site == "decoder" else "decoder"
    assert close(
        eps(pipe, mv.Prompt(prompt(0.5, None).elements, site, **{f"{other}_factors": [[0.0]]})), half
    )


def test_regions_spans_and_balance_move_the_prediction(pipe: Pipeline, picture: np.ndarray) -> None:
    plain = eps(pipe, ["a red circle", picture])
    for changed in (
        [mv.Text("a red circle", spans={"red": 5.0}), mv.Image(picture)],
        [mv.Text("a red circle"), mv.Image(picture, 1.0, [((0, 0, 0.5, 0.5), 5.0)])],
        mv.Prompt(["a red circle", picture], balance=True),
    ):
        assert not close(eps(pipe, changed), plain)


@pytest.mark.parametrize("factor", [0.0, 1e38])
def test_no_weights_and_factors_make_a_nan(pipe: Pipeline, picture: np.ndarray, factor: float) -> None:
    for weights in ((0.0, 0.0), (0.0, 1.0), (1e-300, 1e300)):
        elements = [mv.Image(picture, weights[0]), mv.Text("a red circle", weights[1])]
        everywhere = mv.Prompt(elements, decoder_factors=[[factor]], cross_attention_factors=[[factor]])
        assert np.all(np.isfinite(eps(pipe, everywhere)))


def test_factors_of_another_model_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="for 3 layers of 1 heads; this model's decoder has 2 of 2"):
        pipe.embed(mv.Prompt("a", decoder_factors=[1, 1, 1]))
    with pytest.raises(UserError, match="this model's cross-attention has 7 of 2"):
        pipe.embed(mv.Prompt("a", cross_attention_factors=[1, 1, 1]))
    plain = pipe.embed("a")
    wrong = Condition(plain.hidden, plain.log_weights, jnp.ones((3, 2)))
    with pytest.raises(UserError, match="for 3 cross-attentions of 2 heads; this UNet has 7 of 2"):
        pipe.denoise(jnp.zeros((1, 8, 8, 4)), 500, wrong)


@pytest.mark.slow
def test_negative_prompts_have_a_strength_and_hold_images(pipe: Pipeline, picture: np.ndarray) -> None:
    def draw(**options: Any) -> np.ndarray:
        drawn = pipe("a red circle", num_images=1, steps=2, seed=3, **options)
        return np.asarray(drawn[0]).astype(int)

    against = ["a blue cross", mv.Image(picture, 0.7)]
    none, full = draw(), draw(negative=against)
    zero, one, half = (draw(negative=against, negative_strength=s) for s in (0.0, 1.0, 0.5))
    assert np.mean(np.abs(zero - none) <= 1) >= 0.999
    np.testing.assert_array_equal(one, full)
    assert np.abs(half - full).max() > 1 and np.abs(half - none).max() > 1
    with pytest.raises(UserError, match="strength is -1"):
        draw(negative=against, negative_strength=-1)
    fresh = draw(sampler="ddim", eta=1.0)
    np.testing.assert_array_equal(fresh, draw(sampler="ddim", eta=1.0))
    assert np.abs(fresh - draw(sampler="ddim")).max() > 1
