"""Stable Diffusion itself, from its public folder to pictures, against diffusers' own pipeline."""

from __future__ import annotations

import functools
import json
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from converting import convert
from diffusers import StableDiffusionPipeline
from micro import draw
from PIL import Image
from torch_trees import close, nchw
from transformers import CLIPTokenizer
from vocabularies import clip_vocabulary

import mvader_jax as mv
from mvader_jax.cli.main import main
from mvader_jax.condition import PADDING
from mvader_jax.diffusion.guidance import guided
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import Notice, UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.sampling.generate import decode_latents
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import Bundle

PROMPT, STEPS, SCALE, SEED = "The cat and a hat!", 50, 8.0, 7


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """A small random Stable Diffusion, whole."""
    folder = clip_vocabulary(tmp_path_factory.mktemp("clip") / "tokenizer")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pipeline = StableDiffusionPipeline(
        vae=twins.vae(),
        text_encoder=twins.clip_text(),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        unet=twins.unet(),
        scheduler=twins.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(theirs: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As diffusers itself saves it."""
    path = tmp_path_factory.mktemp("sd") / "stable-diffusion"
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "sd14"
    assert set(convert(folder, path).components) == {"unet", "vae", "text_encoder"}
    return path


def test_the_whole_of_it(theirs: StableDiffusionPipeline, bundle: Path) -> None:
    """Same prompt, same latents: embeddings, latents after PNDM's 50 steps, and picture."""
    pipe = Pipeline.load(bundle, cache=False)
    model = pipe.model
    assert model.embedder == "clip_text" and model.schedule == ScheduleConfig(spacing="leading")
    tokens = theirs.tokenizer(PROMPT, padding="max_length", max_length=20, truncation=True).input_ids
    prompt, null = pipe.bundle.to_batch([PROMPT]), pipe.bundle.to_batch([None])
    assert prompt.token_ids[0].tolist() == tokens
    assert null.token_ids[0].tolist() == [298, *[299] * 19]

    @jax.jit
    def ours(components: Any, prompt: Any, null: Any, noise: jax.Array) -> tuple[jax.Array, ...]:
        condition, nothing = (embed(model, components, batch) for batch in (prompt, null))
        assert model.unet is not None and model.schedule is not None
        unet = functools.partial(UNet(model.unet).apply, {"params": components["unet"]})
        denoise = guided(unet, condition, nothing, SCALE)
        plms = SAMPLERS["plms"]
        latents = plms(denoise, noise, plms.levels(model.schedule, STEPS))
        picture = decode_latents(components, latents, model=model, dtype="float32")
        return condition.hidden, nothing.hidden, latents, picture

    noise = initial_noise(jnp.array([SEED], jnp.uint32), jnp.array([0]), (8, 8, 4))
    hidden, nothing, latents, picture = ours(pipe.bundle.components, prompt, null, noise)
    with twins.torch.no_grad():
        expected, negative = theirs.encode_prompt(PROMPT, "cpu", 1, True)
        start = twins.torch.from_numpy(nchw(noise).copy())
        options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "latents": start}
        final = theirs(PROMPT, output_type="latent", **options).images
        image = theirs(PROMPT, output_type="np", **options).images
    close(hidden, expected, 1e-4)
    close(nothing, negative, 1e-4)
    # The steps moved them: this is no comparison of the noise with itself.
    assert float(np.abs(np.asarray(latents) - np.asarray(noise)).max()) > 1.0
    close(nchw(latents), final, 1e-3)
    close(jnp.clip(picture, -1, 1) / 2 + 0.5, twins.torch.from_numpy(image), 2e-3)
    # The same through the front door, to a level of 255.
    (drawn,) = pipe(PROMPT, sampler="plms", seed=SEED, steps=STEPS, guidance_scale=SCALE)
    difference = np.abs(np.asarray(drawn).astype(int) - np.round(image[0] * 255).astype(int))
    assert difference.max() <= 1


def test_a_long_prompt_is_read_in_chunks(theirs: StableDiffusionPipeline, bundle: Path) -> None:
    """Each with BOS and EOS through transformers' tower, states joined; or cut at the first, which is told."""
    pipe = Pipeline.load(bundle, cache=False)
    text = f"{'the cat and a hat ' * 5}a cat in the hat"
    ids = theirs.tokenizer(text, add_special_tokens=False).input_ids
    pieces = [ids[start : start + 18] for start in range(0, len(ids), 18)]
    rows = [[298, *piece, 299, *[299] * (18 - len(piece))] for piece in pieces]
    assert len(rows) == 3 and len(pieces[-1]) < 18
    with twins.torch.no_grad():
        expected = theirs.text_encoder(twins.torch.tensor(rows))[0]
    width = expected.shape[-1]
    close(pipe.embed(text, long_prompts="chunk").hidden, expected.reshape(1, 60, width), 1e-4)
    with pytest.warns(
        Notice, match=f"has {len(ids) + 2} tokens, more than this model's 20 positions, and is cut: "
    ):
        close(pipe.embed(text).hidden, expected[:1], 1e-4)
    with pytest.raises(UserError, match=f"a prompt has {len(ids) + 2} text tokens"):
        pipe.embed(text, long_prompts="refuse")
    # A token's weight goes with it into its chunk.
    weighted = mv.Prompt([mv.Text(text, spans={" in ": 2.0})], long_prompts="chunk")
    batch = pipe.bundle.to_batch([weighted, PROMPT])
    place, after = np.flatnonzero(batch.log_weights[0])
    at = theirs.tokenizer(text.split(" in ")[0], add_special_tokens=False).input_ids
    assert place == 20 * (len(at) // 18) + 1 + len(at) % 18 and after == place + 1
    assert np.isclose(batch.condition_log_weights[0, place], np.log(2.0))
    # Beside a longer one a short prompt has no further chunks.
    short = pipe.bundle.to_batch([PROMPT])
    np.testing.assert_array_equal(batch.token_ids[1, :20], short.token_ids[0])
    assert np.all(batch.log_weights[1, 20:] == PADDING) and np.all(
        batch.condition_log_weights[1, 20:] == PADDING
    )
    both, alone = pipe.embed_batch(batch), pipe.embed_batch(short)
    np.testing.assert_allclose(both.hidden[1, :20], alone.hidden[0], atol=1e-5)
    assert bool(np.all(np.isfinite(both.hidden)))


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["convert", folder, tmp_path / "sd14"],
        [
            "sample",
            "a photo",
            "--bundle",
            tmp_path / "sd14",
            "--steps",
            2,
            "--num-images",
            1,
            "--out",
            tmp_path,
        ],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert not stopped.value.code
    said = capsys.readouterr().out
    assert f"{folder} is stable-diffusion" in said and "text_encoder: " in said
    with Image.open(tmp_path / "00000.png") as picture:
        assert picture.size == (32, 32)


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """Stable Diffusion 1.4's dimensions, random: 64x64 latents, two steps, a picture of 512x512, below 24 GB."""
    tokenizer = Tokenizer.load(
        clip_vocabulary(tmp_path / "tokenizer"),
        TokenizerConfig("clip", 299, 298, 299, add_bos=True, add_eos=True, length=77, max_positions=77),
    )
    model = ModelConfig(
        embedder="clip_text",
        text_encoder=ClipTextConfig.sd14(),
        unet=UNetConfig.sd14(),
        vae=VAEConfig.sd14(),
        schedule=ScheduleConfig(),
        tokenizer=tokenizer.config,
    )
    rng = np.random.default_rng(0)
    shapes, _ = abstract_components(model, ("unet", "vae", "text_encoder"))
    components = jax.tree_util.tree_map_with_path(lambda path, leaf: draw(rng, path, leaf), shapes)
    pipe = Pipeline(Bundle(model, components, tokenizer))
    begun = time.perf_counter()
    (picture,) = pipe("a photo", steps=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"\ntwo steps and a picture: {time.perf_counter() - begun:.0f} s, compiling included; peak {peak / 1e9:.2f} GB"
    )
    assert picture.size == (512, 512) and np.asarray(picture).std() > 1
    assert peak < 24e9
