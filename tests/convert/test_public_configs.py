"""Every key of the public models' settings is accounted for: read, known to change nothing, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import twins
from converting import convert
from diffusers import AutoencoderKL, UNet2DConditionModel
from test_manifests import Names, on_meta, recorded
from test_open_s_magma import hollow
from transformers import CLIPConfig, CLIPTextConfig, GPTJConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.kinds.schedulers import schedule_config
from mvader_jax.convert.kinds.sd_configs import unet_config, vae_config
from mvader_jax.convert.settings import Settings
from mvader_jax.convert.sources import open_source
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

#: As the files of Stable Diffusion 1.4, GPT-J-6B, SGPT, GPT-NeoX-20B and MAGMA have them.
UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
TEXT_ENCODER = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0", "vocab_size": 49408,
}  # fmt: skip
GPTJ = {
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256,
    "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
    "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer", "transformers_version": "4.18.0.dev0",
    "use_cache": True, "vocab_size": 50400,
}  # fmt: skip
SGPT = {
    **GPTJ,
    "_name_or_path": "EleutherAI/gpt-j-6B",
    "architectures": ["GPTJModel"],
    "torch_dtype": "float32",
}
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144, "initializer_range": 0.02,
    "intermediate_size": 24576, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
    "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.19.0.dev0", "use_cache": True,
    "vocab_size": 50432,
}  # fmt: skip
MAGMA = {
    "encoder_name": "clip_resnet_large", "freeze_img_encoder": False, "batch_size": 256, "train_steps": 150000,
    "adapter_config": {"mlp": {"adapter_type": "normal", "downsample_factor": 4}}, "lr": 8e-4, "min_lr": 0.0,
    "lr_decay_iters": 300000, "image_enc_lr": 2e-6, "use_image_embed_layernorm": True,
    "image_embed_dropout_prob": 0.1, "image_size": 384, "gradient_accumulation_steps": 8, "zero_stage": 2,
    "gradient_clipping": 1.0, "train_dataset_name": "conceptual_captions", "train_dataset_dir": "/mnt/cc",
    "eval_dataset_name": "coco", "eval_dataset_dir": "/mnt/coco", "save": "/mnt/x", "load": "/mnt/x", "eval_every": 100,
}  # fmt: skip


def neox_names() -> Names:
    settings = {key: value for key, value in NEOX.items() if key not in ("rotary_emb_base", "rotary_pct")}
    names = on_meta(lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**settings)))
    return {name: shape for name, shape in names.items() if "rotary" not in name}


def bare_gptj() -> Names:
    names = {n.removeprefix("transformer."): s for n, s in recorded("gptj_6b").items()}
    return {name: shape for name, shape in names.items() if not name.startswith("lm_head")}


#: {kind: (its tensors, its settings, what they come to)}; shapes alone, no numbers.
FOLDERS: dict[str, tuple[Callable[[], Names], dict[str, Any]]] = {
    "gptj": (lambda: recorded("gptj_6b"), GPTJ),
    "sgpt-biases": (bare_gptj, SGPT),
    "gpt-neox": (neox_names, NEOX),
    "clip-text": (lambda: recorded("sd14_text_encoder"), TEXT_ENCODER),
    "magma": (lambda: recorded("magma_v1"), MAGMA),
}


def read(kind: str, folder: Path, settings: dict[str, Any]) -> Any:
    hollow(folder / "model.safetensors", FOLDERS[kind][0]()) if not folder.exists() else None
    (folder / "config.json").write_text(json.dumps(settings))
    source = open_source(folder, None, Options())
    assert source.kind.name == kind
    return source.model


def test_the_public_settings_give_the_public_models(tmp_path: Path) -> None:
    assert unet_config(Settings(UNET, "x")) == UNetConfig.sd14()
    assert vae_config(Settings(VAE, "x")) == VAEConfig.sd14()
    assert schedule_config(Settings(SCHEDULER, "x")) == (ScheduleConfig(), ())
    assert read("clip-text", tmp_path / "a", TEXT_ENCODER).text_encoder == ClipTextConfig.sd14()
    assert read("gptj", tmp_path / "b", GPTJ).decoder == DecoderConfig.gptj_6b()
    assert read("sgpt-biases", tmp_path / "c", SGPT).decoder == DecoderConfig.gptj_6b()
    neox = read("gpt-neox", tmp_path / "d", NEOX)
    assert (neox.decoder.num_heads, neox.decoder.rotary_dim, neox.tokenizer.eos_id) == (64, 24, 0)
    assert read("magma", tmp_path / "e", MAGMA).adapters.width == 1024


def test_what_todays_libraries_write(tmp_path: Path) -> None:
    """All their keys, at the values that their classes take."""
    gptj = {**GPTJConfig().to_dict(), "output_past": True}
    assert read("gptj", tmp_path / "b", gptj).decoder == DecoderConfig.gptj_6b()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    neox = GPTNeoXConfig(hidden_act="gelu_fast", rope_parameters=rope).to_dict()
    assert read("gpt-neox", tmp_path / "d", neox).decoder.rotary_dim == 24
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
    assert read("clip-text", tmp_path / "a", text.to_dict()).text_encoder == ClipTextConfig.sd14()
    # The whole CLIP's, as ViT-L/14's repository has it.
    whole = {
        **CLIPConfig(text_config=text.to_dict()).to_dict(),
        "torch_dtype": "float32",
        "text_config_dict": {},
    }
    assert read("clip-text", tmp_path / "a", whole).text_encoder == ClipTextConfig.sd14()
    for small, reader in ((twins.unet(), unet_config), (twins.vae(), vae_config)):
        small.save_pretrained(tmp_path / type(small).__name__)
        settings = Settings.load(tmp_path / type(small).__name__ / "config.json")
        assert isinstance(small, (UNet2DConditionModel, AutoencoderKL)) and len(settings.values) > 15
        reader(settings)


#: {kind: keys at values that are not computed here, or contradict the weights}.
OTHERWISE: dict[str, list[dict[str, Any]]] = {
    "gptj": [
        {"rotary": False}, {"scale_attn_weights": False}, {"activation_function": "relu"}, {"model_type": "gpt2"},
        {"tie_word_embeddings": True}, {"add_cross_attention": True}, {"quantization_config": {"bits": 8}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"pruned_heads": {"1": [0]}}, {"n_layer": 27},
        {"n_embd": 4095}, {"vocab_size": 50257}, {"rotary_dim": 63}, {"rotary_dim": 512}, {"n_head": 0},
        {"n_head": 7}, {"n_head": -16}, {"n_head": 16.5}, {"n_head": True}, {"n_positions": 10**30},
        {"layer_norm_epsilon": "x"}, {"layer_norm_epsilon": float("nan")}, {"layer_norm_epsilon": -1e-5},
        {"eos_token_id": "</s>"}, {"a_new_way": True}, {"auto_map": {"AutoModel": "custom.Model"}},
    ],
    "gpt-neox": [
        {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"factor": 2.0}},
        {"rope_scaling": "linear"}, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "attention_factor": 2.0}}, {"rotary_pct": 0.27},
        {"rotary_pct": 2}, {"rotary_pct": "x"}, {"rotary_emb_base": 0}, {"rotary_emb_base": float("inf")},
        {"use_parallel_residual": "yes"}, {"attention_bias": False}, {"hidden_act": "relu"},
        {"num_attention_heads": 63}, {"hidden_size": 6145}, {"sliding_window": 128}, {"model_type": "llama"},
    ],
    "clip-text": [
        {"hidden_act": "relu"}, {"model_type": "clip_vision_model"}, {"layer_norm_eps": 0},
        {"num_attention_heads": 11}, {"num_hidden_layers": 11}, {"max_position_embeddings": 248},
        {"text_config": []}, {"use_attention_mask": True}, {"num_attention_heads": [12]},
    ],
    "magma": [
        {"adapter_config": {"mlp": {"adapter_type": "normal", "downsample_factor": 8}}},
        {"adapter_config": {"mlp": {"adapter_type": "scaled_parallel", "downsample_factor": 4}}},
        {"adapter_config": {"mlp": {"adapter_type": "normal", "add_layernorm": True}}},
        {"adapter_config": {"attention": {"adapter_type": "normal", "downsample_factor": 4}}},
        {"adapter_config": {"ff": {}, "x": 1}}, {"encoder_name": "nfresnet50"}, {"image_size": 224.5},
        {"image_size": 385}, {"use_image_embed_layernorm": False}, {"class_dict": {"num_classes": 3}},
        {"lm_name": "EleutherAI/gpt-neo-2.7B"}, {"run_blind": True}, {"rotary_dim": 32}, {"n_positions": 4096},
        {"rational_image_encoder": True}, {"unheard_of": 1},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, changes) for kind, several in OTHERWISE.items() for changes in several],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_what_is_not_computed_here_is_refused_by_name(
    kind: str, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"public-{kind}"
    read(kind, folder, FOLDERS[kind][1])
    with pytest.raises(UserError) as error:
        read(kind, folder, {**FOLDERS[kind][1], **changes})
    message = str(error.value)
    named = [*changes, *(key for value in changes.values() if isinstance(value, dict) for key in value)]
    assert any(key in message for key in named) or "heads" in message, message
    assert len(message) < 400 + len(str(folder)) and "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["AttnDownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"]},
        # All four known kinds and an unknown one: what a test for a strict superset let pass.
        {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["KDownBlock2D"]},
        {"down_block_types": ["DownBlock2D"] * 4},
        {"down_block_types": "CrossAttnDownBlock2D"},
        {"block_out_channels": 16},
        {"block_out_channels": [320, 640, 1280]},
        {"block_out_channels": [320, 640, 1280, -1280]},
        {"block_out_channels": [320, 640, 1280, "1280"]},
        {"block_out_channels": []},
        {"norm_eps": "x"},
        {"norm_num_groups": 33},
        {"attention_head_dim": [5, 10, 20]},
        {"attention_head_dim": 7},
        {"sample_size": [64, 96]},
        {"layers_per_block": [2, 2, 2, 1]},
        {"transformer_layers_per_block": [1, 2, 10, 10]},
        {"class_embed_type": "projection"},
        {"encoder_hid_dim": 4096},
        {"mid_block_type": None, "mid_block_only_cross_attention": True},
        {"attention_type": "gated"},
        {"resnet_out_scale_factor": 0.5},
        {"conv_in_kernel": 1},
        {"_class_name": "UNet3DConditionModel"},
        {"something_new": 1},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_other_unets_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        unet_config(Settings({**copy.deepcopy(UNET), **changes}, "unet/config.json"))
    message = str(error.value)
    assert any(key in message for key in changes) or "blocks" in message or "num_heads" in message, message
    assert len(message) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"shift_factor": 0.1159},
        {"latents_mean": [0.1]},
        {"use_quant_conv": False},
        {"mid_block_add_attention": False},
        {"out_channels": 1},
        {"scaling_factor": 0},
        {"scaling_factor": float("nan")},
        {"block_out_channels": "128"},
        {"down_block_types": ["DownEncoderBlock2D"] * 3},
        {"up_block_types": ["AttnUpDecoderBlock2D"] * 4},
        {"act_fn": "gelu"},
        {"_class_name": "AutoencoderTiny"},
        {"temporal_compression_ratio": 4},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_other_vaes_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        vae_config(Settings({**VAE, **changes}, "vae/config.json"))
    assert any(key in str(error.value) for key in changes) and len(str(error.value)) < 400


def test_magmas_own_yaml_is_read(tmp_path: Path) -> None:
    file = twins.save_magma(tmp_path / "magma", twins.magma(1))
    settings = json.loads(file.with_name("config.json").read_text())
    said = "\n".join(f"{key}: {json.dumps(value)}" for key, value in {**MAGMA, **settings}.items())
    (tmp_path / "MAGMA_v1.yml").write_text(
        f"{{\n# as the repository has it\n{said.replace(chr(10), ', ' + chr(10))}\n}}"
    )
    assert "image_encoder" in convert(file, tmp_path / "out", config=tmp_path / "MAGMA_v1.yml").components
    (tmp_path / "MAGMA_v1.yml").write_text("{broken: [")
    with pytest.raises(UserError, match=r"cannot read .*MAGMA_v1\.yml"):
        convert(file, tmp_path / "out2", config=tmp_path / "MAGMA_v1.yml")
