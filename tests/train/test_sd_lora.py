"""The shipped config of a LoRA: it trains, its file is what diffusers loads, and DreamBooth's second data set counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import UNet2DConditionModel
from test_sd_finetune import SD, leaves, run, sd_bundle
from torch_trees import nhwc

from mvader_jax.condition import Condition
from mvader_jax.convert.export import export
from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.sharding import bytes_per_device
from mvader_jax.plan.program import train_program
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.train.config import load_config
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.run import build_run, data_loader

SMALL = {
    "steps": 2,
    "batch_size": 4,
    "sample_every": 0,
    "remat": "none",
    "data.threads": 1,
    "dtype": "float32",
    "frozen_dtype": "float32",
    "lora.unet.rank": 2,
    "optimizer.warmup_steps": 0,
    "groups.lora.learning_rate": 0.01,
}


def overrides(stage: str, **more: Any) -> list[str]:
    return [f"stages.{stage}.{name}={json.dumps(value)}" for name, value in {**SMALL, **more}.items()]


def one() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and two data sets: of black pictures, and of white ones."""
    folder = tmp_path_factory.mktemp("sd_lora")
    save_bundle(folder / "bundles/sd14", sd_bundle())
    for name, grey in {"subject": 0, "class": 255}.items():
        (folder / name).mkdir()
        for number in range(4):
            PIL.Image.fromarray(np.full((20, 30, 3), grey, np.uint8)).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text(f"a {name} of {number}", encoding="utf-8")
        assert run("data", "build", "image_captions", str(folder / name), str(folder / "data" / name)) == 0
    return folder


def test_a_style_trains_and_diffusers_loads_its_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = load_config(
        "sd_lora", [*overrides("diffusion"), 'stages.diffusion.data.source.paths=["data/subject"]']
    )
    assert train(config, "diffusion", "runs/sd_lora", one(), quiet=True) == 0
    file = "runs/sd_lora/diffusion/lora.safetensors"
    assert run("bundle", "bundles/merged", "--base", "bundles/sd14", "--merge-lora", file) == 0
    for component in ("text_encoder", "vae", "unet"):
        base, merged, result = (
            leaves(path, component)
            for path in ("bundles/sd14", "bundles/merged", "runs/sd_lora/diffusion/bundle")
        )
        changed = {path for path in base if not np.array_equal(base[path], merged[path])}
        assert bool(changed) == (component == "unet") and all("attn" in path for path in changed)
        for path in base:
            np.testing.assert_allclose(merged[path], result[path], rtol=1e-6, atol=1e-7)
    export("bundles/sd14", Path("exported"), "diffusers")
    theirs = UNet2DConditionModel.from_pretrained("exported/unet").eval()
    theirs.load_lora_adapter(file, prefix="unet")
    torch.manual_seed(0)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 32)
    with torch.no_grad():
        eps = theirs(x, t, context).sample.numpy().transpose(0, 2, 3, 1)
    assert SD.unet is not None
    params = load_bundle("bundles/merged", components=["unet"]).components["unet"]
    condition = Condition(jnp.asarray(context), jnp.zeros((1, 5)))
    ours = UNet(SD.unet).apply({"params": params}, nhwc(x), jnp.asarray(t), condition)
    assert np.abs(ours - eps).max() <= 2e-5 * np.abs(eps).max()
    assert run("export", file, "kohya.safetensors", "--to", "kohya", "--base", "bundles/sd14") == 0
    assert (
        run("sample", "a", "--bundle", "bundles/sd14", "--lora", "kohya.safetensors@0.5", "--steps", "1") == 0
    )


def test_the_class_counts_as_much_as_it_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)

    config = load_config("sd_lora", overrides("subject", **{"objective.prior_weight": 0.25}))
    made = build_run(config, config.stages["subject"], "runs", one())
    batch = next(data_loader(made, "train"))
    # Black pictures are the subject's, white ones the class's.
    assert (batch["data_set"] == (batch["pixels"].mean(axis=(1, 2, 3)) > 128)).all()
    assert batch["data_set"].sum() == 2
    _, metrics = made.step(made.state, batch)
    means = {name: float(value[0] / value[1]) for name, value in metrics.items() if value[1] > 0}
    subject, prior = means["loss_subject"], means["loss_prior"]
    assert means["loss"] == pytest.approx((subject + 0.25 * prior) / 2, rel=1e-5)
    assert means["loss_text"] == pytest.approx((subject + prior) / 2, rel=1e-5) and subject != prior


def test_a_prior_needs_two_data_sets() -> None:
    objective = Diffusion(p_image=0.0, prior_weight=1.0)
    with pytest.raises(UserError, match="needs two data sets"):
        objective.check(DataConfig(source=Records(("a",))))
    objective.check(DataConfig(source=Records(("a", "b"))))
    with pytest.raises(UserError, match="needs two data sets"):
        objective.check(micro.DATA)


def test_a_plan_of_the_shipped_config_counts_factors_alone() -> None:
    model = dataclasses.replace(SD, unet=UNetConfig.sd14(), vae=VAEConfig.sd14())
    assert model.text_encoder is not None
    model = dataclasses.replace(
        model, text_encoder=dataclasses.replace(model.text_encoder, width=768, num_heads=12)
    )
    config = dataclasses.replace(load_config("sd_lora"), model=model)
    program = train_program(config, config.stages["diffusion"], one())
    sizes = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    # Four times the 797,184 parameters that a LoRA of rank 4 on the same layers is known to have.
    assert sizes["trained weights"] == 4 * 3_188_736 and sizes["average"] == sizes["trained weights"]
    assert sizes["optimizer"] == pytest.approx(2 * sizes["trained weights"], rel=0.001)
    assert sizes["frozen weights"] > 2 * 859_520_964
