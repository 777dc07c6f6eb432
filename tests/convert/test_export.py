"""What goes out is what came in, bit by bit, and PyTorch programs read it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import twins
from converting import convert, converted
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch_trees import close, nchw, nhwc
from transformers import CLIPTextModel

from mvader_jax.condition import Condition
from mvader_jax.convert.compose import compose
from mvader_jax.convert.export import export
from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.kinds.magma import MAGMA_FILE
from mvader_jax.convert.kinds.sd_compvis import COMPVIS_FILE
from mvader_jax.convert.kinds.sd_configs import unet_settings
from mvader_jax.convert.sources import open_source
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.storage.bundle import Bundle, load_bundle, save_bundle
from mvader_jax.storage.bundle_config import read_config


def same_state(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def same_bundles(a: Path, b: Path, *, model: bool = True) -> None:
    """Equal in every bit, type, name and shape: that is what the hashes are made of."""
    one, two = read_config(a), read_config(b)
    assert one["components"].keys() == two["components"].keys()
    for name, record in one["components"].items():
        assert record["sha256"] == two["components"][name]["sha256"], name
        assert record["dtypes"] == two["components"][name]["dtypes"]
    assert not model or one["model"] == two["model"]


@dataclasses.dataclass
class Converted:
    """A Stable Diffusion in PyTorch, its diffusers folder, and the bundle that came of it."""

    models: dict[str, Any]
    source: Path
    bundle: Path


TYPES = {
    "float32": (torch.float32, torch.float16, torch.bfloat16),
    "float16": (torch.float16, torch.bfloat16, torch.float32),
}


@pytest.fixture(scope="module", params=TYPES)
def sd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Each component of another type, all kept."""
    folder = tmp_path_factory.mktemp("sd")
    models = {"unet": twins.unet(), "vae": twins.vae(), "text_encoder": twins.clip_text()}
    for model, dtype in zip(models.values(), TYPES[request.param], strict=True):
        model.to(dtype)
    source = twins.save_diffusers(folder / "source", *models.values())
    bundle = converted(source, folder / "bundle")
    for (name, tree), dtype in zip(bundle.components.items(), TYPES[request.param], strict=True):
        kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
        assert kinds == {str(dtype).removeprefix("torch.")}, name
    return Converted(models, source, folder / "bundle")


def test_diffusers_round_trip(sd: Converted, tmp_path: Path) -> None:
    export(sd.bundle, tmp_path / "back", "diffusers")
    for name in sd.models:
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        state = load_file(tmp_path / "back" / name / f"{stem}.safetensors")
        expected = load_file(sd.source / name / f"{stem}.safetensors")
        prefix = "text_model." if name == "text_encoder" and "text_model." not in next(iter(expected)) else ""
        same_state(state, {prefix + key: tensor for key, tensor in expected.items()})
    convert(tmp_path / "back", tmp_path / "again")
    same_bundles(tmp_path / "again", sd.bundle)


@pytest.mark.parametrize("sd", ["float32"], indirect=True)
def test_diffusers_loads_it_and_computes_the_same(sd: Converted, tmp_path: Path) -> None:
    export(sd.bundle, tmp_path / "out", "diffusers", dtype="float32")
    AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder")
    scheduler = PNDMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    expected = {k: v for k, v in twins.scheduler().config.items() if not k.startswith("_")}
    assert {k: v for k, v in scheduler.config.items() if not k.startswith("_")} == expected
    back, theirs = (
        UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        for folder in (tmp_path / "out", sd.source)
    )
    torch.manual_seed(0)
    x, t, context = torch.randn(1, 4, 8, 12), torch.tensor([500]), torch.randn(1, 5, 36)
    with torch.no_grad():
        eps = theirs(x, t, context).sample
        close(back(x, t, context).sample, eps, 1e-5)
        # To the bit in the same memory: PyTorch's sums depend on where an array begins.
        theirs.load_state_dict(back.state_dict())
        assert torch.equal(theirs(x, t, context).sample, eps)
    bundle = load_bundle(sd.bundle, components=["unet"], dtype="float32")
    assert bundle.model.unet is not None
    condition = Condition(jnp.asarray(context), jnp.zeros((1, 5)))
    ours = jax.jit(UNet(bundle.model.unet).apply)(
        {"params": bundle.components["unet"]}, nhwc(x), jnp.asarray(t.numpy()), condition
    )
    close(nchw(ours), eps, 1e-4)


def test_diffusers_makes_linear_projections_of_the_config_that_goes_out() -> None:
    config = UNetConfig(4, 4, (16, 32), 1, (True, True), 28, (2, 4), 8, linear_projection=True)
    theirs = UNet2DConditionModel.from_config(unet_settings(config))
    ours, _ = abstract_components(ModelConfig(unet=config), ("unet",))
    sizes = sorted(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours))
    assert sizes == sorted(p.numel() for p in theirs.parameters())
    assert theirs.mid_block.attentions[0].proj_in.weight.shape == (32, 32)


def test_compvis_round_trip(sd: Converted, tmp_path: Path) -> None:
    export(sd.bundle, tmp_path / "out", "compvis")
    convert(tmp_path / "out", tmp_path / "again")
    same_bundles(tmp_path / "again", sd.bundle)
    # diffusers' own reader of this format finds the same tensors.
    unet, vae = sd.models["unet"], sd.models["vae"]
    state = load_file(tmp_path / "out" / COMPVIS_FILE)
    same_state(convert_ldm_unet_checkpoint(dict(state), {**unet.config}), dict(unet.state_dict()))
    read = convert_ldm_vae_checkpoint(dict(state), {**vae.config})
    same_state(read, dict(vae.state_dict()))


@pytest.mark.parametrize("sd", ["float32"], indirect=True)
def test_compvis_with_moving_average_and_its_other_entries(sd: Converted, tmp_path: Path) -> None:
    export(sd.bundle, tmp_path / "out", "compvis")
    (tmp_path / "out" / COMPVIS_FILE).rename(tmp_path / "out" / "state.safetensors")
    state = load_file(tmp_path / "out" / "state.safetensors")
    (tmp_path / "out" / "state.safetensors").unlink()
    file = tmp_path / "out" / "model.ckpt"
    unet = "model.diffusion_model."
    ema = {
        "model_ema." + f"diffusion_model.{name.removeprefix(unet)}".replace(".", ""): tensor + 1
        for name, tensor in state.items()
        if name.startswith(unet)
    }
    # The text tower by the names of newer releases of transformers.
    state = {name.replace("transformer.text_model.", "transformer."): t for name, t in state.items()}
    state |= {**ema, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    names = ("betas", "alphas_cumprod", "posterior_mean_coef1", "sqrt_recipm1_alphas_cumprod", "lvlb_weights")
    state |= {name: torch.zeros(1000) for name in names}
    state["alphas_cumprod"] = torch.from_numpy(ScheduleConfig().alphas_cumprod()).float()
    state["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save({"state_dict": state, "global_step": 3}, file)
    report = convert(file, tmp_path / "plain")
    assert set(report.skipped["moving average of the UNet (--ema takes it instead)"]) == {
        *ema,
        "model_ema.decay",
        "model_ema.num_updates",
    }
    assert set(report.skipped["the schedule's tables"]) == set(names)
    same_bundles(tmp_path / "plain", sd.bundle)
    # The same as bare safetensors, as later releases are.
    (tmp_path / "single").mkdir()
    save_file(state, tmp_path / "single" / "v1-5.safetensors")
    (tmp_path / "out" / "config.json").rename(tmp_path / "single" / "config.json")
    average = converted(tmp_path / "single" / "v1-5.safetensors", tmp_path / "ema", ema=True)
    plain = load_bundle(tmp_path / "plain")
    for name in ("vae", "text_encoder"):
        assert average.records[name]["sha256"] == plain.records[name]["sha256"]
    jax.tree.map(
        np.testing.assert_array_equal,
        average.components["unet"],
        jax.tree.map(lambda leaf: leaf + 1, plain.components["unet"]),
    )
    for name in (*ema, "model_ema.decay", "model_ema.num_updates"):
        del state[name]
    save_file(state, tmp_path / "single" / "v1-5.safetensors")
    with pytest.raises(UserError, match="no moving average"):
        convert(tmp_path / "single", tmp_path / "ema2", ema=True)


@pytest.mark.parametrize(
    ("version", "dtype"), [(1, torch.float16), (2, torch.float32), (2, torch.bfloat16)], ids=str
)
def test_magma_round_trip(tmp_path: Path, version: int, dtype: torch.dtype) -> None:
    theirs = twins.magma(version).to(dtype)
    source = twins.save_magma(tmp_path / "magma", theirs)
    convert(source, tmp_path / "first")
    export(tmp_path / "first", tmp_path / "out", "magma")
    convert(tmp_path / "out" / MAGMA_FILE, tmp_path / "second")
    same_bundles(tmp_path / "second", tmp_path / "first")
    state = torch.load(tmp_path / "out" / MAGMA_FILE, weights_only=True)["module"]
    expected = theirs.public_state(aliases=False)
    kept = {k: v for k, v in expected.items() if k in state}
    same_state(state, kept)
    left = [name for name in expected if name not in state]
    assert all(name.endswith(("attention.bias", "masked_bias", "num_batches_tracked")) for name in left)


def test_semantic_biases_are_laid_over_the_exported_language_model(tmp_path: Path) -> None:
    bundle = converted(twins.save_magma(tmp_path / "magma", twins.magma(1)), tmp_path / "first")
    bias = np.full((3, 48), 7, np.float32)
    biases = {"layers": {"ln_1": {"bias": bias}}}
    with_biases = Bundle(bundle.model, {**bundle.components, "biases": biases})
    # Written by orbax as training does, in one compressed chunk, not by the conversion.
    save_bundle(tmp_path / "second", with_biases)
    done = export(tmp_path / "second", tmp_path / "out", "magma")
    assert "biases" in done.components and "in place of the language model's own" in " ".join(done.notes)
    exported = converted(tmp_path / "out", tmp_path / "third")
    decoder = bundle.components["decoder"]
    decoder["layers"]["ln_1"]["bias"] = bias
    jax.tree.map(np.testing.assert_array_equal, exported.components["decoder"], decoder)
    assert exported.records["adapters"]["sha256"] == bundle.records["adapters"]["sha256"]


def test_export_in_another_type(tmp_path: Path) -> None:
    convert(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "out", "diffusers", dtype="float16")
    state = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, tensor in twins.vae().state_dict().items():
        assert torch.equal(state[name], tensor.half()), name


def test_export_refuses_a_type_that_cannot_hold_the_numbers(tmp_path: Path) -> None:
    bundle = converted(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "first")
    kernel = np.array(bundle.components["vae"]["quant_conv"]["kernel"])
    kernel[0, 0, 0, 1] = 1e5
    bundle.components["vae"]["quant_conv"]["kernel"] = kernel
    save_bundle(tmp_path / "large", bundle)
    with pytest.raises(UserError, match="vae quant_conv/kernel holds 100000, which float16 cannot"):
        export(tmp_path / "large", tmp_path / "out", "diffusers", dtype="float16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "large", tmp_path / "out", "diffusers", dtype="bfloat16")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    convert(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "vae")
    neox = twins.gpt_neox()
    convert(
        twins.save_folder(tmp_path / "neox", neox.state_dict(), neox.config.to_dict()), tmp_path / "gpt-neox"
    )
    for bundle, to, reason in [
        ("vae", "magma", "has nothing that magma holds"),
        ("vae", "compvis", "is told by its UNet, which this bundle lacks"),
        ("vae", "onnx", "unknown format 'onnx'; accepted: diffusers, compvis, magma"),
        ("gpt-neox", "diffusers", "has nothing that diffusers holds"),
        ("gpt-neox", "magma", "is told by its image prefix"),
        ("absent", "magma", "no bundle"),
    ]:
        with pytest.raises(UserError, match=reason):
            export(tmp_path / bundle, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        export(tmp_path / "vae", tmp_path / "out", "diffusers", dtype="int8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(tmp_path / "vae", tmp_path / "out", "diffusers")
    with pytest.raises(UserError, match="holds no export that mvader wrote"):
        export(tmp_path / "vae", tmp_path / "out", "diffusers", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_bundle_with_a_hole_is_neither_exported_nor_composed(tmp_path: Path) -> None:
    """A copy that was cut: zeros would take the place of what is missing."""
    convert(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "first")
    chunks = sorted(f for f in (tmp_path / "first" / "vae").rglob("*") if f.is_file() and f.name[0].isdigit())
    chunks[len(chunks) // 2].unlink()
    with pytest.raises(UserError):
        export(tmp_path / "first", tmp_path / "out", "diffusers")
    with pytest.raises(UserError):
        compose(tmp_path / "out", {"vae": tmp_path / "first"})
    assert not (tmp_path / "out").exists()


def test_an_export_to_a_link_or_a_url(tmp_path: Path) -> None:
    convert(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "vae")
    export(tmp_path / "vae", tmp_path / "out", "diffusers")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    export(tmp_path / "vae", tmp_path / "link", "diffusers", overwrite=True, dtype="float16")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out" / "vae").is_dir()
    with pytest.raises(UserError, match="a part of the source"):
        export(tmp_path / "vae", tmp_path / "vae" / "vae", "diffusers", overwrite=True)
    with pytest.raises(UserError, match="is not on this machine's file system"):
        export(tmp_path / "vae", Path("gs://bucket/out"), "diffusers")


def test_overwriting_replaces_exports_alone(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.vae())
    convert(source, tmp_path / "vae")
    files = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    # Another's model of the same format stays, and so does what a user laid beside an export.
    with pytest.raises(UserError, match="sd is not replaced: it holds no export that mvader wrote"):
        export(tmp_path / "vae", source, "diffusers", overwrite=True)
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == files
    out = tmp_path / "out"
    for _ in range(2):
        export(tmp_path / "vae", out, "diffusers", overwrite=True)
    (out / "vae" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out is not replaced: beside an export it holds vae/notes\.txt"):
        export(tmp_path / "vae", out, "diffusers", overwrite=True)
    assert (out / "vae" / "notes.txt").read_text() == "mine"
    # The bundle itself, and what holds it.
    for place, reason in ((tmp_path / "vae", "is the source"), (tmp_path, "holds the source")):
        with pytest.raises(UserError, match=reason):
            export(tmp_path / "vae", place, "diffusers", overwrite=True)
    assert (tmp_path / "vae" / "config.json").is_file()


def test_parts_left_out_are_named(tmp_path: Path) -> None:
    bundle = converted(twins.save_magma(tmp_path / "magma", twins.magma(1)), tmp_path / "first")
    vae = converted(twins.save_diffusers(tmp_path / "sd", twins.vae()), tmp_path / "vae")
    model = ModelConfig(**{**vars(bundle.model), "vae": vae.model.vae})
    save_bundle(tmp_path / "both", Bundle(model, {**bundle.components, **vae.components}))
    done = export(tmp_path / "both", tmp_path / "out", "magma")
    assert done.notes == ("left out, magma has no place for it: vae",)
    assert open_source(tmp_path / "out", None, Options()).model.vae is None
