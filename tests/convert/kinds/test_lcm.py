"""Latent consistency models of diffusers: in, drawn with as its own pipeline does, and out again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import twins
from converting import convert, converted
from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file
from torch_trees import close, nchw, nhwc
from transformers import CLIPTokenizer
from vocabularies import clip_vocabulary

from mvader_jax.condition import Condition
from mvader_jax.convert.export import export
from mvader_jax.diffusion.noise import initial_noise, sampler_keys
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNet
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.storage.bundle_config import read_config

PROMPT, SEED, SCALE = "The cat and a hat!", 7, 8.0


def pipeline_of(folder: Path, **changes: Any) -> LatentConsistencyModelPipeline:
    """A small random one, whole."""
    clip_vocabulary(folder)
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = LatentConsistencyModelPipeline(
        vae=twins.vae(),
        text_encoder=twins.clip_text(),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        unet=twins.unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(original_inference_steps=40, **changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> LatentConsistencyModelPipeline:
    return pipeline_of(tmp_path_factory.mktemp("clip") / "tokenizer")


@pytest.fixture(scope="module")
def bundle(theirs: LatentConsistencyModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lcm")
    theirs.save_pretrained(folder / "theirs")
    report = convert(folder / "theirs", folder / "bundle")
    assert set(report.components) == {"unet", "vae", "text_encoder"}
    assert not any("sampler" in note or "steps_offset" in note for note in report.notes), report.notes
    return folder / "bundle"


def same_noise(monkeypatch: pytest.MonkeyPatch, count: int) -> torch.Tensor:
    """diffusers draws the noise that ours draws, picture by picture; the first is returned."""
    seeds, indices = np.full(count, SEED, np.uint32), np.arange(count)
    step = iter(range(100))

    def drawn(shape: Any, **_: Any) -> torch.Tensor:
        now = next(step)
        keys = [jax.random.fold_in(key, now) for key in sampler_keys(seeds, indices)]
        return torch.from_numpy(np.stack([nchw(jax.random.normal(key, (1, 8, 8, 4)))[0] for key in keys]))

    monkeypatch.setattr(scheduling_lcm, "randn_tensor", drawn)
    return torch.from_numpy(nchw(initial_noise(seeds, indices, (8, 8, 4))).copy())


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_pictures_are_those_of_its_own_pipeline(
    theirs: LatentConsistencyModelPipeline, bundle: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.load(bundle)
    assert pipe.model.schedule is not None and pipe.model.schedule.original_steps == 40
    assert (pipe.defaults.sampler, pipe.defaults.steps) == ("lcm", 4)
    drawn = pipe(PROMPT, seed=SEED, num_images=4, steps=steps, guidance_scale=SCALE)
    expected = theirs(
        PROMPT,
        num_images_per_prompt=4,
        num_inference_steps=steps,
        original_inference_steps=40,
        guidance_scale=SCALE,
        latents=same_noise(monkeypatch, 4),
        output_type="np",
    ).images
    difference = np.abs(np.stack(drawn).astype(int) - np.round(expected * 255).astype(int))
    assert np.mean(difference <= 1) >= 0.999 and difference.max() <= 2
    # The scale has a say, and the noise of the steps.
    other = pipe(PROMPT, seed=SEED, num_images=4, steps=steps, guidance_scale=3.0)
    assert not np.array_equal(np.stack(drawn), np.stack(other))


def test_what_came_in_goes_out_and_their_pipeline_reads_it(
    theirs: LatentConsistencyModelPipeline, bundle: Path, tmp_path: Path
) -> None:
    export(bundle, tmp_path / "out", "diffusers")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "LatentConsistencyModelPipeline"
    back = LatentConsistencyModelPipeline.from_pretrained(tmp_path / "out")
    assert type(back.scheduler) is LCMScheduler
    kept = {
        "original_inference_steps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "set_alpha_to_one",
    }
    for name in kept:
        assert back.scheduler.config[name] == theirs.scheduler.config[name], name
    state = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert state["time_embedding.cond_proj.weight"].shape == (16, 16)
    for name, tensor in theirs.unet.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert back.unet.config.time_cond_proj_dim == 16
    again = converted(tmp_path / "out", tmp_path / "again")
    records = (read_config(path)["components"] for path in (bundle, tmp_path / "again"))
    first, second = ({name: record["sha256"] for name, record in one.items()} for one in records)
    assert first == second
    assert again.model.unet == load_bundle(bundle).model.unet

    torch.manual_seed(0)
    x, t, context = torch.randn(2, 4, 8, 12), torch.tensor([500, 19]), torch.randn(2, 5, 36)
    scales = back.get_guidance_scale_embedding(torch.tensor([7.0, 0.5]), embedding_dim=16)
    with torch.no_grad():
        eps = back.unet(x, t, context, timestep_cond=scales).sample
    condition = Condition(jnp.asarray(context.numpy()), jnp.zeros((2, 5)))
    assert again.model.unet is not None
    ours = jax.jit(UNet(again.model.unet).apply)(
        {"params": again.components["unet"]},
        nhwc(x),
        jnp.asarray(t.numpy()),
        condition,
        guidance=jnp.array([8.0, 1.5]),
    )
    close(nchw(ours), eps, 1e-4)


def test_the_few_step_unet_of_two_goes_out(bundle: Path, tmp_path: Path) -> None:
    """A bundle that holds both writes either; the one that is left out is named where it can be had."""
    both = load_bundle(bundle)
    few, model = both.components["unet"], both.model
    assert model.unet is not None
    full = dataclasses.replace(model.unet, time_cond_proj_dim=None)
    time = {name: tree for name, tree in few["time_embedding"].items() if name != "cond_proj"}
    both.components |= {"unet": {**few, "time_embedding": time}, "unet_fast": few}
    both.model = dataclasses.replace(model, unet=full, unet_fast=model.unet)
    save_bundle(tmp_path / "both", both)

    done = export(tmp_path / "both", tmp_path / "full", "diffusers")
    assert "left out, diffusers has no place for it: unet_fast; --fast takes it" in done.notes
    done = export(tmp_path / "both", tmp_path / "fast", "diffusers", fast=True)
    assert not any("unet" in note for note in done.notes)
    names = [json.loads((tmp_path / one / "model_index.json").read_text()) for one in ("full", "fast")]
    assert [one["scheduler"][1] for one in names] == ["PNDMScheduler", "LCMScheduler"]
    states = [
        load_file(tmp_path / one / "unet" / "diffusion_pytorch_model.safetensors") for one in ("full", "fast")
    ]
    assert states[1].keys() - states[0].keys() == {"time_embedding.cond_proj.weight"}
    fast = Pipeline.load(tmp_path / "both", fast=True)(PROMPT, seed=1)[0]
    assert np.array_equal(fast, Pipeline.load(bundle)(PROMPT, seed=1)[0])


def test_what_is_not_drawn_with_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this model has no unet_fast"):
        export(bundle, tmp_path / "out", "diffusers", fast=True)
    with pytest.raises(UserError, match="CompVis' UNet takes no guidance scale"):
        export(bundle, tmp_path / "out", "compvis")
    source = twins.save_diffusers(tmp_path / "lora", twins.unet())
    LCMScheduler().save_pretrained(source / "scheduler")
    with pytest.raises(UserError, match="its UNet takes no guidance scale as an input"):
        convert(source, tmp_path / "bundle")


def test_pairing_mistakes_are_refused_in_one_sentence(bundle: Path) -> None:
    pipe = Pipeline.load(bundle)
    for settings, message in (
        (
            {"sampler": "ddim"},
            "the sampler is ddim, but this UNet was distilled to few steps .* by lcm alone",
        ),
        ({"negative": "a hat"}, "there is a negative prompt, but this UNet was distilled"),
        ({"steps": 41}, "steps is 41; accepted are 1 to 40 of a model distilled to few steps"),
        ({"eta": 0.5}, "takes none; those that do: ddim"),
        ({"reuse": 2}, "reuse does nothing for a UNet that was distilled"),
        ({"guidance_interval": (0.3, 5.0)}, "guidance_interval does nothing for a UNet that was distilled"),
    ):
        with pytest.raises(UserError, match=message):
            pipe(PROMPT, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is a negative prompt, but this UNet was distilled"):
        pipe.batch([PROMPT], negative="a hat")
