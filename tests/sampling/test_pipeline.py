"""Prompts to pictures with the smallest model: the same picture every time, and never a second compile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.paper.demo import demo
from mvader_jax.paper.evaluate import Evaluation, evaluate
from mvader_jax.sampling.arguments import init_images
from mvader_jax.sampling.pictures import NotFiniteError
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle())


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render(scene_at(0, 3))


def draw(pipe: Pipeline, prompt: object, **options: object) -> np.ndarray:
    images = pipe(prompt, **{"steps": 3, "num_images": 2, **options})
    return np.stack([np.asarray(image) for image in images])


def test_draws_and_compiles_once(pipe: Pipeline, picture: np.ndarray) -> None:
    first = draw(pipe, ["a red circle", picture])
    assert first.shape == (2, 64, 64, 3) and first.dtype == np.uint8
    assert not np.array_equal(first[0], first[1])
    before = pipe.compiled
    again = draw(pipe, ["a red circle", picture])
    np.testing.assert_array_equal(first, again)
    other = draw(pipe, [mv.Text("a blue cross"), mv.Image(picture, weight=0.3)], seed=5, guidance_scale=2.0)
    assert pipe.compiled == before
    assert not np.array_equal(first, other)


def test_an_image_does_not_depend_on_how_many_are_drawn(pipe: Pipeline) -> None:
    two, one = draw(pipe, "a red circle"), draw(pipe, "a red circle", num_images=1)
    difference = np.abs(two[0].astype(int) - one[0])
    assert np.mean(difference <= 1) >= 0.999


def test_weight_one_is_bitwise_the_plain_prompt(pipe: Pipeline, picture: np.ndarray) -> None:
    plain = pipe.embed(["a red circle", picture])
    weighted = pipe.embed([mv.Text("a red circle", weight=1.0), mv.Image(picture, weight=1.0)])
    np.testing.assert_array_equal(plain.hidden, weighted.hidden)
    np.testing.assert_array_equal(plain.log_weights, weighted.log_weights)


def test_weight_zero_at_the_cross_attention_is_the_prompt_without_it(
    pipe: Pipeline, picture: np.ndarray
) -> None:
    latents = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    both = pipe.embed([mv.Text("a red circle"), mv.Image(picture, weight=0.0)], site="cross_attention")
    alone = pipe.embed([mv.Text("a red circle")])
    one, other = pipe.denoise(latents, 500, both), pipe.denoise(latents, 500, alone)
    assert float(jnp.abs(one - other).max()) <= 1e-5 * float(jnp.abs(other).max())


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.0, 1.0), (1e-30, 1e30)])
@pytest.mark.parametrize("site", ["decoder", "cross_attention", "both"])
def test_no_weight_makes_a_nan(
    pipe: Pipeline, picture: np.ndarray, weights: tuple[float, float], site: str
) -> None:
    prompt = [mv.Image(picture, weight=weights[0]), mv.Text("a red circle", weight=weights[1])]
    condition = pipe.embed(prompt, site=site)
    eps = pipe.denoise(jnp.ones((1, 8, 8, 4)), 500, condition)
    assert bool(jnp.all(jnp.isfinite(condition.hidden))) and bool(jnp.all(jnp.isfinite(eps)))


def test_bfloat16_stays_within_two_percent(pipe: Pipeline, picture: np.ndarray) -> None:
    components = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pipe.bundle.components)
    half = Pipeline(Bundle(pipe.model, components, pipe.bundle.tokenizer), dtype="bfloat16")
    latents = jax.random.normal(jax.random.key(0), (4, 8, 8, 4))
    eps = []
    for one in (pipe, half):
        condition = one.embed([mv.Text("in blue"), mv.Image(picture, weight=0.3)])
        rows = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), condition)
        eps.append(np.asarray(one.denoise(latents, np.array([1, 250, 500, 981]), rows), np.float32))
    for i in range(4):
        assert np.linalg.norm(eps[1][i] - eps[0][i]) <= 0.02 * np.linalg.norm(eps[0][i])


def test_encode_and_decode(pipe: Pipeline, picture: np.ndarray) -> None:
    latents = pipe.encode(picture[None])
    assert latents.shape == (1, 8, 8, 4)
    np.testing.assert_allclose(latents, pipe.encode([picture]), atol=1e-5)
    np.testing.assert_allclose(latents, pipe.encode(picture[None] / 255), atol=1e-5)
    decoded = np.asarray(pipe.decode(latents))
    assert decoded.shape == (1, 64, 64, 3) and 0.0 <= decoded.min() < decoded.max() <= 1.0
    # Floats of 0 to 1 everywhere: what is decoded may be encoded, shown in a prompt, and started from.
    assert pipe.encode(decoded).shape == latents.shape
    as_bytes = np.rint(decoded[0] * 255).astype(np.uint8)
    conditions = [np.asarray(pipe.embed(mv.Image(one)).hidden) for one in (decoded[0], as_bytes)]
    np.testing.assert_array_equal(*conditions)
    sizes = (64, 64)
    starts = [init_images(one, None, 1, sizes).pixels for one in (decoded[0], as_bytes)]
    np.testing.assert_array_equal(*starts)
    for bad in (decoded * 2 - 1, decoded * 255):
        with pytest.raises(UserError, match="floats of 0 to 1"):
            pipe.encode(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"num_images": 0}, "num_images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"sampler": "magic"}, "accepted: plms"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"height": 65}, "multiples of 16"),
    ],
)
def test_wrong_settings_are_one_sentence(pipe: Pipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipe, "a red circle", **options)


def test_bundle_round_trip_and_missing_parts(tmp_path: Path, pipe: Pipeline) -> None:
    save_bundle(tmp_path / "b", pipe.bundle)
    loaded = load_bundle(tmp_path / "b")
    assert loaded.model == pipe.bundle.model
    jax.tree.map(np.testing.assert_array_equal, loaded.components, pipe.bundle.components)
    with pytest.raises(UserError, match="--overwrite"):
        save_bundle(tmp_path / "b", pipe.bundle)
    partial = Pipeline(load_bundle(tmp_path / "b", components=["decoder", "adapters", "biases"]))
    assert partial.embed("a red circle").hidden.shape[-1] == 48
    with pytest.raises(UserError, match="no unet and no vae"):
        partial("a red circle")
    with pytest.raises(UserError, match="embedded"):
        Pipeline.load(tmp_path / "nothing", cache=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_loading_changes_no_setting_of_jax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MVADER_CACHE", str(tmp_path))
    before = dict(jax.config.values)
    Pipeline.load("tiny")
    assert jax.config.values == before


def test_what_is_not_finite_is_no_picture(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError, match="pictures 0, 1: NaN or infinity arose") as caught:
        draw(pipe, ["a red circle"], guidance_scale=1e38)
    assert caught.value.pictures == {}
    pixels, real = np.zeros((3, 64, 64, 3), np.uint8), pipe.generate
    monkeypatch.setattr(pipe, "generate", lambda *_: (jnp.asarray(pixels), jnp.array([True, False, True])))
    with pytest.raises(NotFiniteError, match="picture 1: NaN or infinity") as caught:
        draw(pipe, "a red circle", num_images=3)
    assert sorted(caught.value.pictures) == [0, 2]
    monkeypatch.setattr(pipe, "generate", real)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, pipe.bundle.components["vae"])
    damaged = Pipeline(Bundle(pipe.model, {**pipe.bundle.components, "vae": broken}, pipe.bundle.tokenizer))
    for act in (
        lambda: demo(damaged, tmp_path, SamplingSettings(steps=1), num_images=1),
        lambda: evaluate(damaged, Evaluation(2, 2, SamplingSettings(steps=1)), ["text"]),
        lambda: evaluate(damaged, Evaluation(2, 2, SamplingSettings(steps=1)), ["reconstruction"]),
    ):
        with pytest.raises(UserError, match="NaN or infinity arose on the way"):
            act()
    assert not list(tmp_path.glob("*.png"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    good = micro.bundle(micro.NANO)
    decoder = dataclasses.replace(good.model.decoder, vocab_size=290, head_vocab_size=290)
    model = dataclasses.replace(good.model, decoder=decoder)
    other = micro.bundle(model, "decoder")
    assert other.tokenizer is not None and other.tokenizer.vocab_size > 290
    with pytest.raises(UserError, match=r"a prompt has token \d+, but the model's embedding ends at 289"):
        other.to_batch(["a large solid red circle on the left"])
    save_bundle(tmp_path / "b", other)
    with pytest.raises(UserError, match=r"has \d+ tokens, but the model's embedding has 290 rows"):
        load_bundle(tmp_path / "b")
