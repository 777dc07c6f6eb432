"""Every public kind, small and random, through the whole conversion: the same numbers as PyTorch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pytorch_fid_here
import torch
import twins
from converting import convert, converted
from safetensors.torch import save_file
from torch_trees import close, nchw, nhwc

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.sources import kind_names, open_source
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipText
from mvader_jax.models.decoder import Decoder
from mvader_jax.models.embed import embed
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.storage.bundle import Bundle

TOKENS = torch.tensor([[3, 17, 42, 5, 61, 8, 0], [1, 2, 3, 4, 5, 6, 7]])


def decoder_outputs(bundle: Bundle, tokens: torch.Tensor) -> tuple[jax.Array, jax.Array]:
    """(hidden states, logits) of a bundle's decoder."""
    assert bundle.model.decoder is not None
    module, params = Decoder(bundle.model.decoder), {"params": bundle.components["decoder"]}
    embeddings = module.apply(params, jnp.asarray(tokens.numpy()), method="embed")
    hidden = module.apply(params, embeddings, jnp.zeros(tokens.shape))
    return hidden, module.apply(params, hidden, method="logits")


@pytest.mark.parametrize("style", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_gptj(tmp_path: Path, style: str) -> None:
    theirs = twins.gptj()
    state = {**theirs.state_dict(), "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
    shards = 3 if style.startswith("sharded") else 1
    source = twins.save_folder(
        tmp_path / "gptj", state, theirs.config.to_dict(), kind=style.split()[-1], shards=shards
    )
    report = convert(source, tmp_path / "first")
    assert report.skipped == {"causal mask, a buffer": ("transformer.h.0.attn.bias",)}
    bundle = converted(source, tmp_path / "out")
    hidden, logits = decoder_outputs(bundle, TOKENS)
    expected = theirs(TOKENS, output_hidden_states=True)
    close(hidden, expected.hidden_states[-1], 1e-4)
    close(logits, expected.logits, 1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_parallel_residual": False, "hidden_act": "gelu_new"},
        {"attention_bias": False, "num_attention_heads": 2},
    ],
    ids=["parallel", "sequential", "no biases"],
)
def test_gpt_neox(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = twins.gpt_neox(**changes)
    # transformers itself writes the public names.
    theirs.save_pretrained(tmp_path / "neox")
    bundle = converted(tmp_path / "neox", tmp_path / "out")
    hidden, logits = decoder_outputs(bundle, TOKENS)
    expected = theirs(TOKENS, output_hidden_states=True)
    close(hidden, expected.hidden_states[-1], 1e-4)
    close(logits, expected.logits, 1e-4)


def test_gpt_neox_by_its_older_settings(tmp_path: Path) -> None:
    theirs = twins.gpt_neox()
    settings = theirs.config.to_dict()
    del settings["rope_parameters"]
    settings |= {"rotary_pct": 0.5, "rotary_emb_base": 5000}
    bundle = converted(twins.save_folder(tmp_path / "neox", theirs.state_dict(), settings), tmp_path / "out")
    close(decoder_outputs(bundle, TOKENS)[1], theirs(TOKENS).logits, 1e-4)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_text(tmp_path: Path, prefix: str) -> None:
    theirs = twins.clip_text()
    state = {prefix + name.removeprefix("text_model."): t for name, t in theirs.state_dict().items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(20)[None]
    bundle = converted(twins.save_folder(tmp_path / "text", state, theirs.config.to_dict()), tmp_path / "out")
    assert bundle.model.text_encoder is not None and bundle.model.embedder == "clip_text"
    ours = ClipText(bundle.model.text_encoder).apply(
        {"params": bundle.components["text_encoder"]}, jnp.asarray(TOKENS.numpy())
    )
    close(ours, theirs(TOKENS).last_hidden_state, 1e-4)


def save_clip(folder: Path, model: twins.Clip, style: str) -> Path:
    """OpenAI's archive (TorchScript), or its state dict, by the name of the whole or of a tower."""
    folder.mkdir()
    file = folder / "clip.pt"
    if style == "archive":
        torch.jit.save(torch.jit.trace(model, torch.randn(1, 3, 96, 96)), file)
    elif style == "visual tower":
        torch.save(model.visual.state_dict(), file)
    else:
        torch.save(model.state_dict(), file)
    return file


@pytest.mark.parametrize("style", ["archive", "state dict", "visual tower"])
def test_clip_resnet(tmp_path: Path, style: str) -> None:
    theirs = twins.clip()
    bundle = converted(save_clip(tmp_path / "clip", theirs, style), tmp_path / "out")
    config = bundle.model.image_encoder
    assert config is not None
    # 10 positions of the attention pool: one, and 3 x 3 of 32 pixels.
    assert (config.layers, config.width, config.image_size) == ((1, 2, 1, 1), 12, 96)
    pixels = torch.randn(2, 3, 64, 96)
    ours = ImageEncoder(config).apply({"params": bundle.components["image_encoder"]}, nhwc(pixels))
    theirs.visual.attnpool = torch.nn.Identity()
    features = torch.nn.Module.__call__(theirs.visual, pixels)
    close(ours, features.flatten(2).transpose(1, 2), 1e-4)


def test_clip_text_of_openai(tmp_path: Path) -> None:
    theirs = twins.clip()
    file = save_clip(tmp_path / "clip", theirs, "archive")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    bundle = converted(file, tmp_path / "out", "clip-text")
    assert bundle.model.text_encoder is not None
    ours = ClipText(bundle.model.text_encoder).apply(
        {"params": bundle.components["text_encoder"]}, jnp.asarray(TOKENS.numpy())
    )
    close(ours, theirs.text(TOKENS), 1e-4)


UNETS: dict[str, dict[str, Any]] = {
    "two levels": {"layers_per_block": 2, "attention_head_dim": [2, 3]},
    "three levels": {
        "block_out_channels": (16, 24, 40),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(tmp_path: Path, name: str) -> None:
    theirs = twins.unet(**UNETS[name])
    bundle = converted(twins.save_diffusers(tmp_path / "sd", theirs), tmp_path / "out")
    config = bundle.model.unet
    assert config is not None and set(bundle.components) == {"unet"}
    x, t = torch.randn(2, config.in_channels, 8, 12), torch.tensor([981, 3])
    context = torch.randn(2, 9, config.cross_attention_dim)
    condition = Condition(jnp.asarray(context.numpy()), jnp.zeros((2, 9)))
    ours = jax.jit(UNet(config).apply)(
        {"params": bundle.components["unet"]}, nhwc(x), jnp.asarray(t.numpy()), condition
    )
    close(nchw(ours), theirs(x, t, context).sample, 1e-4)


def old_attention_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As diffusers named the VAE's attention before 0.15."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    result = {}
    for name, tensor in state.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        result[name] = tensor
    return result


@pytest.mark.parametrize("style", ["safetensors", "bin, older names"])
def test_vae(tmp_path: Path, style: str) -> None:
    theirs = twins.vae()
    source = twins.save_diffusers(tmp_path / "sd", theirs)
    if style != "safetensors":
        (source / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(old_attention_names(theirs.state_dict()), source / "vae" / "diffusion_pytorch_model.bin")
    bundle = converted(source, tmp_path / "out")
    assert bundle.model.vae is not None
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    vae, params = VAE(bundle.model.vae), {"params": bundle.components["vae"]}
    mean, logvar = vae.apply(params, nhwc(images), method="encode")
    posterior = theirs.encode(images).latent_dist
    close(nchw(mean), posterior.mean, 1e-4)
    close(nchw(logvar), posterior.logvar, 1e-4)
    decoded = vae.apply(params, nhwc(posterior.mean), method="decode")
    close(nchw(decoded), theirs.decode(posterior.mean).sample, 1e-4)


def test_half_precision_is_kept_or_widened(tmp_path: Path) -> None:
    theirs = twins.unet().half()
    source = twins.save_diffusers(tmp_path / "sd", theirs)
    weight = theirs.conv_in.weight.detach().numpy().transpose(2, 3, 1, 0)
    for dtype, expected in (("keep", "float16"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        kernel = converted(source, tmp_path / dtype, dtype=dtype).components["unet"]["conv_in"]["kernel"]
        assert kernel.dtype == expected
        np.testing.assert_array_equal(np.asarray(kernel), weight.astype(kernel.dtype))


@pytest.mark.parametrize("version", [1, 2])
def test_magma(tmp_path: Path, version: int) -> None:
    """Hidden states of interleaved prompts, against GPT-J with adapters, prefix and encoder in PyTorch."""
    theirs = twins.magma(version)
    file = twins.save_magma(tmp_path / "magma", theirs)
    report = convert(file, tmp_path / "again")
    assert len(report.skipped["buffer of attention: mask, scale or rotary table"]) == 2 * 2 * 3
    assert "word_embedding.weight" in report.skipped["repeats another tensor, checked equal"]
    assert "image_prefix.enc.bn1.num_batches_tracked" in report.skipped["training counter of a batch norm"]
    bundle = converted(file, tmp_path / "out")
    assert set(bundle.components) == {"decoder", "adapters", "image_prefix", "image_encoder"}
    config = bundle.model.image_encoder
    assert config is not None and config.num_tokens == 9

    run = jax.jit(functools.partial(embed, bundle.model))
    torch.manual_seed(8)
    one, two = torch.randn(2, 1, 3, 96, 96)
    text, more = TOKENS[:1, :4], TOKENS[1:, :3]
    prompts = {
        "image, text": (one, text),
        "text, image, text": (text, one, more),
        "two images": (one, text, two),
    }
    if version == 2:
        prompts = {"text, image, text": prompts["text, image, text"]}
    for name, parts in prompts.items():
        batch = prompt_batch(parts, config.num_tokens)
        condition = run(bundle.components, batch)
        assert condition.hidden.shape[1] == batch.token_ids.shape[1]
        assert condition.hidden.dtype == jnp.float32, name
        close(condition.hidden, theirs.hidden(*parts), 1e-4)


def prompt_batch(parts: tuple[torch.Tensor, ...], tokens: int) -> PromptBatch:
    """Token ids [1, S] and pixels [1, 3, H, W] in order, as a batch of one prompt."""
    ids: list[int] = []
    index: list[int] = []
    images = []
    for part in parts:
        if part.ndim == 2:
            ids += part[0].tolist()
            index += [-1] * part.shape[1]
        else:
            ids += [0] * tokens
            index += range(len(images) * tokens, (len(images) + 1) * tokens)
            images.append(nhwc(part)[0])
    weights = np.zeros((1, len(ids)), np.float32)
    pixels = np.stack(images)[None] if images else np.zeros((1, 0, 96, 96, 3), np.float32)
    return PromptBatch(np.array([ids]), pixels, np.array([index]), weights, weights)


def test_magma_without_its_copy_of_the_language_model(tmp_path: Path) -> None:
    theirs = twins.magma(2)
    file = twins.save_magma(tmp_path / "magma", theirs, language_model=False)
    bundle = converted(file, tmp_path / "out")
    assert set(bundle.components) == {"adapters", "image_prefix", "image_encoder"}
    whole = converted(twins.save_magma(tmp_path / "whole", theirs, aliases=False), tmp_path / "out2")
    assert whole.model == bundle.model
    jax.tree.map(np.testing.assert_array_equal, bundle.components["adapters"], whole.components["adapters"])


def test_magma_with_half_a_language_model_is_refused(tmp_path: Path) -> None:
    theirs = twins.magma(1)
    file = twins.save_magma(tmp_path / "magma", theirs)
    state = torch.load(file, weights_only=True)["module"]
    torch.save(
        {k: v for k, v in state.items() if "h.1.ln_1.bias" not in k and k != "transformer.1.ln_1.bias"}, file
    )
    with pytest.raises(UserError, match=r"missing lm\.transformer\.h\.1\.ln_1\.bias$"):
        convert(file, tmp_path / "out")
    state["transformer.1.ln_1.bias"] = state["transformer.1.ln_1.bias"] + 1
    torch.save({"module": state}, file)
    with pytest.raises(
        UserError, match=r"transformer\.1\.ln_1\.bias differs from lm\.transformer\.h\.1\.ln_1\.bias"
    ):
        convert(file, tmp_path / "out")


def test_recognised_by_content_whatever_its_name(tmp_path: Path) -> None:
    gptj, neox, text, whole = twins.gptj(), twins.gpt_neox(), twins.clip_text(), twins.whole_clip()
    cases: dict[str, tuple[str, Callable[[Path], Path]]] = {
        "a": ("gptj", lambda p: twins.save_folder(p, gptj.state_dict(), gptj.config.to_dict())),
        "b": ("gpt-neox", lambda p: twins.save_folder(p, neox.state_dict(), neox.config.to_dict())),
        "c": ("clip-text", lambda p: twins.save_folder(p, text.state_dict(), text.config.to_dict())),
        "d": ("sgpt-biases", lambda p: twins.save_folder(p, twins.finetuned(gptj), gptj.config.to_dict())),
        "e": ("magma", lambda p: twins.save_magma(p, twins.magma(1))),
        "f": ("clip-resnet", lambda p: save_clip(p, twins.clip(), "state dict")),
        "g": ("stable-diffusion", lambda p: twins.save_diffusers(p, twins.vae())),
        "h": ("stable-diffusion", lambda p: twins.save_diffusers(p, twins.vae()) / "vae"),
        "i": ("clip", lambda p: twins.save_folder(p, whole.state_dict(), whole.config.to_dict())),
        "j": ("inception", lambda p: twins.save_folder(p, pytorch_fid_here.network(16)[1], {})),
    }
    assert {kind for kind, _ in cases.values()} == set(kind_names())
    for name, (kind, save) in cases.items():
        assert open_source(save(tmp_path / name), None, Options()).kind.name == kind
    save_file({"something": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"none of the kinds that are known.*something"):
        open_source(tmp_path / "x.safetensors", None, Options())
    with pytest.raises(UserError, match="unknown kind 'bert'"):
        open_source(tmp_path / "x.safetensors", "bert", Options())
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "absent", None, Options())
    with pytest.raises(UserError, match="is a diffusers folder, not gptj"):
        open_source(tmp_path / "g", "gptj", Options())


def test_unknown_dimensions_need_settings(tmp_path: Path) -> None:
    gptj = twins.gptj()
    source = twins.save_folder(tmp_path / "gptj", gptj.state_dict(), gptj.config.to_dict())
    settings = (source / "config.json").rename(tmp_path / "settings.json")
    with pytest.raises(UserError, match=r"is not GPT-J-6B.*--config FILE\.json with n_head and rotary_dim"):
        convert(source, tmp_path / "out")
    bundle = converted(source, tmp_path / "out", config=settings)
    assert bundle.model.decoder is not None and bundle.model.decoder.num_heads == 4

    for changes, reason in [
        ({"n_layer": 4}, "says n_layer is 4, but the weights have 3"),
        ({"n_head": 5}, "does not divide by 5 heads"),
        ({"n_head": "many"}, "n_head is 'many', not a positive whole number"),
        ({"rotary_dim": None}, "has no 'rotary_dim'"),
        ({"activation_function": "relu"}, "activation_function is 'relu', which is not supported"),
    ]:
        settings.write_text(json.dumps({**gptj.config.to_dict(), **changes}))
        with pytest.raises(UserError, match=reason):
            convert(source, tmp_path / "out2", config=settings)
    settings.write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        convert(source, tmp_path / "out2", config=settings)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_linear_projection": True}, "use_linear_projection is True, which is not supported"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "are not Stable Diffusion's kind"),
        ({"cross_attention_dim": 30}, "misshaped .*attn2.to_k.weight"),
        ({"norm_num_groups": 7}, "must divide by norm_groups"),
    ],
)
def test_other_unets_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet())
    file = source / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError, match=reason):
        convert(source, tmp_path / "out")
