"""Stable Diffusion on captions of one's own: the shipped config, and what a text-only embedder cannot do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources import Records
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.choice import choose
from mvader_jax.plan.program import train_program
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.train import start
from mvader_jax.train.config import TrainConfig, load_config
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.run import build_run
from mvader_jax.train.start import earlier_components, with_model

#: Stable Diffusion's parts, as small as can be.
SD = ModelConfig(
    embedder="clip_text",
    text_encoder=ClipTextConfig(320, 32, 1, 2, 64, 77),
    unet=micro.NANO.unet,
    vae=micro.NANO.vae,
    schedule=micro.NANO.schedule,
    tokenizer=TokenizerConfig(eos_id=0, bos_id=0, add_bos=True, add_eos=True, length=77, max_positions=77),
)


def sd_bundle(model: ModelConfig = SD) -> Bundle:
    assert model.tokenizer is not None
    parts = [name for name in ("text_encoder", "image_encoder", "unet", "vae") if getattr(model, name)]
    made = micro.bundle(model, *parts)
    assert made.tokenizer is not None
    return dataclasses.replace(
        made, model=model, tokenizer=Tokenizer(made.tokenizer.backend, model.tokenizer)
    )


def leaves(path: str, component: str) -> dict[str, np.ndarray]:
    tree = load_bundle(path, components=[component]).components[component]
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def run(*words: str) -> Any:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return done.value.code


def test_the_shipped_config_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle("bundles/sd14", sd_bundle())
    Path("mine").mkdir()
    for number in range(4):
        pixels = np.full((20, 30, 3), 60 * number, np.uint8)
        PIL.Image.fromarray(pixels).save(f"mine/{number}.png")
        Path(f"mine/{number}.txt").write_text(f"a grey of {number}", encoding="utf-8")
    assert run("data", "build", "image_captions", "mine", "data/mine") == 0
    small = {
        "steps": 2,
        "batch_size": 2,
        "sample_every": 0,
        "remat": "none",
        "data.threads": 1,
    }
    small["dtype"] = small["frozen_dtype"] = "float32"
    overrides = [f"stages.attention.{name}={value}" for name, value in small.items()]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found = load_config("sd_finetune", overrides)
    assert train(found, "attention", "runs/sd_finetune", mesh, quiet=True) == 0
    result = "runs/sd_finetune/attention/bundle"
    for component in ("text_encoder", "vae"):
        before, after = leaves("bundles/sd14", component), leaves(result, component)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    before, after = leaves("bundles/sd14", "unet"), leaves(result, "unet")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all("attn2" in name for name in moved)
    assert load_bundle(result).model == SD


def config(path: Path, objective: Diffusion, model: ModelConfig = ModelConfig()) -> TrainConfig:
    stage = dataclasses.replace(
        micro.nano_config().stages["diffusion"], objective=objective, init=(str(path),)
    )
    return TrainConfig("sd", model, {"diffusion": stage})


@pytest.mark.parametrize("name", ["p_image", "p_interleaved"])
@pytest.mark.parametrize("carried", [False, True], ids=["", "an image encoder is carried along"])
def test_pictures_in_prompts_of_an_embedder_that_reads_none_are_refused(
    name: str, carried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run and by a plan, before anything is loaded."""
    model = dataclasses.replace(SD, image_encoder=micro.NANO.image_encoder) if carried else SD
    save_bundle(tmp_path / "sd", sd_bundle(model))
    monkeypatch.setattr(start, "load_bundle", lambda *_, **__: pytest.fail("something was loaded"))
    found = config(tmp_path / "sd", dataclasses.replace(Diffusion(p_image=0.0), **{name: 0.2}))
    stage, mesh = found.stages["diffusion"], make_mesh(MeshConfig(), jax.devices()[:1])
    said = (
        rf"objective.{name} is 0.2, but the model's embedder \(clip_text\) reads no pictures in prompts; set "
    )
    with pytest.raises(UserError, match=said):
        build_run(found, stage, tmp_path, mesh)
    with pytest.raises(UserError, match=said):
        train_program(with_model(found, "diffusion", tmp_path), stage, mesh)


def test_the_model_is_that_of_the_bundles(tmp_path: Path) -> None:
    save_bundle(tmp_path / "sd", sd_bundle())
    found = config(tmp_path / "sd", Diffusion(p_image=0.0))
    model, sources, tokenizer = earlier_components(found, found.stages["diffusion"], tmp_path)
    assert model == SD == with_model(found, "diffusion", tmp_path).model
    assert set(sources) == {"text_encoder", "unet", "vae"} and tokenizer is not None
    # What a config says of its model goes before, and must be the bundles'.
    named = config(tmp_path / "sd", Diffusion(p_image=0.0), SD)
    assert with_model(named, "diffusion", tmp_path / "gone") is named
    other = dataclasses.replace(SD, unet=dataclasses.replace(SD.unet, num_heads=4))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"the unet in .* has another architecture than the config's"):
        earlier_components(config(tmp_path / "sd", Diffusion(), other), named.stages["diffusion"], tmp_path)


def test_a_later_bundle_s_part_replaces_an_earlier_one_s(tmp_path: Path) -> None:
    save_bundle(tmp_path / "sd", sd_bundle())
    assert SD.unet is not None
    wider = dataclasses.replace(SD, unet=dataclasses.replace(SD.unet, num_heads=4))
    save_bundle(tmp_path / "unet", dataclasses.replace(micro.bundle(wider, "unet"), tokenizer=None))
    found = config(tmp_path / "sd", Diffusion(p_image=0.0))
    stage = dataclasses.replace(
        found.stages["diffusion"], init=(str(tmp_path / "sd"), str(tmp_path / "unet"))
    )
    model, sources, _ = earlier_components(found, stage, tmp_path)
    assert model == wider and sources["unet"] == tmp_path / "unet"


def test_a_model_from_nowhere_is_refused(tmp_path: Path) -> None:
    found = config(tmp_path, Diffusion())
    stage = dataclasses.replace(found.stages["diffusion"], init=())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match="names no model, and its stage no init bundle"):
        build_run(found, stage, tmp_path, mesh)


def test_data_that_is_nowhere_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path / "sd", sd_bundle())
    monkeypatch.setattr(start, "load_bundle", lambda *_, **__: pytest.fail("something was loaded"))
    found = config(tmp_path / "sd", Diffusion(p_image=0.0))
    stage = dataclasses.replace(
        found.stages["diffusion"], data=DataConfig(Records((str(tmp_path / "nowhere"),)))
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=r"there is no data set at '.*nowhere'"):
        build_run(found, stage, tmp_path, mesh)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_part_that_is_nowhere_is_told_before_anything_is_loaded(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path / "sd", sd_bundle(dataclasses.replace(SD, **{part: None})))
    monkeypatch.setattr(start, "load_bundle", lambda *_, **__: pytest.fail("something was loaded"))
    found = config(tmp_path / "sd", Diffusion(p_image=0.0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=f"the model's config has no {part}, so it has no {part}"):
        build_run(found, found.stages["diffusion"], tmp_path, mesh)


@pytest.mark.parametrize(
    ("stage", "pod", "fits"),
    [
        ("diffusion", "v5e-4", True),
        ("diffusion", "v6e-1", True),
        ("diffusion", "v5e-1", False),
        ("attention", "v5e-1", True),
    ],
)
def test_the_chips_that_its_docstring_names_hold_it(stage: str, pod: str, fits: bool) -> None:
    """By the planner's estimate, of Stable Diffusion 1.4's shapes."""
    model = ModelConfig(
        embedder="clip_text",
        text_encoder=ClipTextConfig.sd14(),
        unet=UNetConfig.sd14(),
        vae=VAEConfig.sd14(),
        schedule=SD.schedule,
        tokenizer=TokenizerConfig.clip(),
    )
    shipped = dataclasses.replace(load_config("sd_finetune"), model=model)
    chosen = choose(parse_topology(pod, 1), shipped, shipped.stages[stage], flops=lambda: 1e14)
    assert ("nothing is estimated to fit" not in chosen.why) == fits


def test_every_sample_of_the_shipped_config_is_told_its_caption() -> None:
    for stage in load_config("sd_finetune").stages.values():
        assert isinstance(stage.objective, Diffusion)
        assert (stage.objective.p_image, stage.objective.p_interleaved) == (0.0, 0.0)
