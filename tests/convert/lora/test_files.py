"""LoRA files of every format: bit by bit what came in, and refused in one sentence where they are something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mvader_jax.convert.lora.alphas import KEY
from mvader_jax.convert.lora.files import format_names, is_lora, open_lora, read_lora, write_lora
from mvader_jax.convert.lora.formats import FORMATS
from mvader_jax.convert.lora.names import layers_of
from mvader_jax.errors import UserError
from mvader_jax.lora.factors import Factors, Lora, factor_shapes, kernels
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.models.unet import UNetConfig

MODEL = ModelConfig(
    embedder="clip_text",
    text_encoder=ClipTextConfig(50, 12, 3, 2, 20, 8),
    unet=UNetConfig(4, 4, (8, 16), 1, (True, False), 12, 2, 4, 1e-5, 8),
    decoder=DecoderConfig(40, 40, 16, 2, 2, 8, 32, 16, rotary_dim=4),
)
Tensors = dict[str, np.ndarray]
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT_TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def random_file(
    name: str, dtype: type = np.float32, *, alphas: bool = True
) -> tuple[Tensors, dict[str, str]]:
    """A file of the format with every second layer, each of a rank and an alpha of its own."""
    random, tensors = np.random.default_rng(3), Tensors()
    said = {}
    for number, layer in enumerate(layers_of(MODEL)):
        if number % 2:
            continue
        rank, alpha = 1 + number % 3, 0.5 + number % 5
        shapes = layer.external_shapes(rank)
        for key, shape in zip(FORMATS[name].names(layer), shapes, strict=True):
            tensors[key] = random.normal(size=shape).astype(dtype)
        if alphas and (spelled := FORMATS[name].alpha) is not None:
            tensors[spelled(layer)] = np.array(alpha, dtype)
        else:
            said |= {f"{layer.component}.r": 9, f"{layer.component}.lora_alpha": 1.25}
            said.setdefault(f"{layer.component}.alpha_pattern", {})[layer.inner] = alpha
    return tensors, {KEY: json.dumps(said)} if alphas and said else {}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.parametrize("name", list(FORMATS))
def test_round_trip(name: str, alphas: bool, dtype: type, tmp_path: Path) -> None:
    tensors, metadata = random_file(name, dtype, alphas=alphas)
    save_file(tensors, tmp_path / "in.safetensors", metadata)
    lora, found = read_lora(tmp_path / "in.safetensors", MODEL)
    assert found == name
    write_lora(tmp_path / "out.safetensors", lora, MODEL, name)
    back = load_file(tmp_path / "out.safetensors")
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        assert back[key].dtype == array.dtype and back[key].tobytes() == array.tobytes(), key
    again, _ = read_lora(tmp_path / "out.safetensors", MODEL)
    same(lora, again)
    # Through this package's own names too.
    assert write_lora(tmp_path / "own.safetensors", lora, MODEL, "mvader") == "mvader"
    same(lora, read_lora(tmp_path / "own.safetensors", MODEL)[0])


def same(a: Lora, b: Lora) -> None:
    assert {c: list(w) for c, w in a.weights.items()} == {c: list(w) for c, w in b.weights.items()}
    for component, weights in a.weights.items():
        for path, one in weights.items():
            other = b.weights[component][path]
            assert one.ranks == other.ranks
            np.testing.assert_array_equal(one.scale, other.scale)
            assert (one.down.tobytes(), one.up.tobytes()) == (other.down.tobytes(), other.up.tobytes())


def test_the_published_lcm_lora_has_our_names_and_shapes(tmp_path: Path) -> None:
    """The file of latent-consistency/lcm-lora-sdv1-5 has 834 tensors in 134,621,556 bytes: so has ours, to the byte."""
    model, tensors = ModelConfig(embedder="clip_text", unet=UNetConfig.sd14()), Tensors()
    outside = ("unet.conv_in", "unet.conv_out", "unet.time_embedding")
    for layer in layers_of(model):
        if not layer.name.startswith(outside):
            shapes = layer.external_shapes(64)
            for key, shape in zip(FORMATS["kohya"].names(layer), shapes, strict=True):
                tensors[key] = np.zeros(shape, np.float16)
            tensors[f"{FORMATS['kohya'].names(layer)[0].partition('.')[0]}.alpha"] = np.array(64, np.float16)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, {"format": "pt"})
    assert (len(tensors), file.stat().st_size) == (834, 134_621_556)
    lora, name = read_lora(file, model)
    assert name == "kohya" and len(lora.weights["unet"]) == 278


def test_what_a_scale_is(tmp_path: Path) -> None:
    tensors, _ = random_file("kohya")
    save_file(tensors, tmp_path / "a.safetensors")
    lora, _ = read_lora(tmp_path / "a.safetensors", MODEL)
    factors = lora.weights["unet"]["mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel"]
    rank, alpha = tensors[f"{TO_Q}.lora_down.weight"].shape[0], tensors[f"{TO_Q}.alpha"]
    np.testing.assert_allclose(factors.scale, [alpha / rank])
    np.testing.assert_array_equal(factors.down.T, tensors[f"{TO_Q}.lora_down.weight"])


def test_settings_of_peft_in_the_metadata(tmp_path: Path) -> None:
    tensors = {f"{PEFT_TO_Q}.lora_A.weight": np.ones((4, 16), np.float32)}
    tensors[f"{PEFT_TO_Q}.lora_B.weight"] = np.ones((16, 4), np.float32)

    def scale(**said: object) -> float:
        metadata = {KEY: json.dumps({f"unet.{key}": value for key, value in said.items()})}
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        lora, _ = read_lora(tmp_path / "a.safetensors", MODEL)
        (factors,) = lora.weights["unet"].values()
        return float(factors.scale[0])

    assert scale() == 1.0
    assert scale(lora_alpha=8) == 2.0
    assert scale(lora_alpha=8, alpha_pattern={"to_q": 2, "attn1.to_q": 4}) == 0.5
    assert scale(lora_alpha=8, alpha_pattern={"to_k": 2}) == 2.0
    assert scale(lora_alpha=8, use_rslora=True) == 4.0
    with pytest.raises(UserError, match="use_dora"):
        scale(lora_alpha=8, use_dora=True)
    with pytest.raises(UserError, match="an alpha of 'x'"):
        scale(lora_alpha="x")


FOREIGN = {
    f"{TO_Q}.hada_w1_a": "LoHa",
    f"{TO_Q}.lokr_w1": "LoKr",
    f"{TO_Q}.dora_scale": "DoRA",
    f"{TO_Q}.lora_mid.weight": "CP decomposition",
    f"{TO_Q}.on_input": "IA3",
    f"{TO_Q}.oft_blocks": "OFT",
    f"{TO_Q}.diff": "whole weights",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "Stable Diffusion XL",
    "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": "Stable Diffusion XL",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "diffusion transformer",
    "lora_unet_down_blocks_7_resnets_0_conv1.lora_down.weight": "no factor of a layer",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_lora_of_the_model_is_named(name: str, tmp_path: Path) -> None:
    tensors, _ = random_file("kohya")
    save_file({**tensors, name: np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=FOREIGN[name]) as error:
        read_lora(tmp_path / "a.safetensors", MODEL)
    assert name in str(error.value) and "a.safetensors" in str(error.value)


def refused(tensors: Mapping[str, np.ndarray], folder: Path) -> str:
    save_file(dict(tensors), folder / "a.safetensors")
    with pytest.raises(UserError) as error:
        read_lora(folder / "a.safetensors", MODEL)
    return str(error.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    tensors, _ = random_file("kohya")
    down, up = f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight"
    without = {name: array for name, array in tensors.items() if name != up}
    assert "the up factor of unet.mid_block" in refused(without, tmp_path)
    rank = tensors[down].shape[0]
    assert f"[{rank}, 17]" in refused({**tensors, down: np.ones((rank, 17), np.float32)}, tmp_path)
    assert "model of other sizes" in refused({**tensors, up: tensors[up][:, :0]}, tmp_path)
    assert "NaN" in refused({**tensors, up: tensors[up] * np.nan}, tmp_path)
    assert "not floating" in refused({**tensors, up: tensors[up].astype(np.int32)}, tmp_path)
    assert "one number" in refused({**tensors, f"{TO_Q}.alpha": np.ones(3, np.float32)}, tmp_path)
    assert "finite" in refused({**tensors, f"{TO_Q}.alpha": np.array(np.inf)}, tmp_path)
    assert "no factor of a layer" in refused({"weight": np.ones(3)}, tmp_path)
    old = PEFT_TO_Q.replace("attn1.to_q", "attn1.processor.to_q_lora")
    twice = {f"{start}.{end}": np.ones((16, 2) if "up" in end or "B" in end else (2, 16), np.float32)
             for start, ends in ((old, ("down.weight", "up.weight")), (PEFT_TO_Q, ("lora_A.weight", "lora_B.weight")))
             for end in ends}  # fmt: skip
    assert "repeats" in refused(twice, tmp_path)


def test_other_models(tmp_path: Path) -> None:
    tensors, _ = random_file("kohya")
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="the model has neither"):
        read_lora(tmp_path / "a.safetensors", ModelConfig(decoder=MODEL.decoder))
    assert is_lora(open_lora(tmp_path / "a.safetensors"))


def test_the_decoder_has_a_place_in_our_own_format_alone(tmp_path: Path) -> None:
    shapes, _ = abstract_components(MODEL, ["decoder"])
    random, factors = np.random.default_rng(0), {}
    for path, leaf in kernels(shapes["decoder"]).items():
        down, up = (random.normal(size=shape).astype(np.float32) for shape in factor_shapes(leaf.shape, 2))
        layers = leaf.shape[0] if len(leaf.shape) == 3 else 1
        factors[path] = Factors(down, up, (2,) * layers, (np.array(3.0),) * layers)
    lora = Lora({"decoder": factors})
    assert write_lora(tmp_path / "a.safetensors", lora, MODEL) == "mvader"
    back, _ = read_lora(tmp_path / "a.safetensors", MODEL)
    same(lora, back)
    for name in FORMATS:
        with pytest.raises(UserError, match="no place for the factors of decoder"):
            write_lora(tmp_path / "b.safetensors", lora, MODEL, name)
    with pytest.raises(UserError, match=r"accepted: kohya, diffusers, peft, mvader"):
        write_lora(tmp_path / "b.safetensors", lora, MODEL, "a1111")
    assert format_names() == ("kohya", "diffusers", "peft", "mvader")
    other = ModelConfig(decoder=DecoderConfig(40, 40, 16, 3, 2, 8, 32, 16, rotary_dim=4))
    with pytest.raises(UserError, match="beside a weight"):
        read_lora(tmp_path / "a.safetensors", other)
    with pytest.raises(UserError, match="it is of a decoder; the model has"):
        read_lora(tmp_path / "a.safetensors", ModelConfig(unet=MODEL.unet))
