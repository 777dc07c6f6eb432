"""Says of files and tensor names that no kind here reads what they are, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

_BASE = "convert the whole Stable Diffusion 1.x that it belongs to (merged, if it changes it)"
_LORA = "`mvader sample --lora FILE` draws with it, `mvader bundle OUT --base BUNDLE --merge-lora FILE` lays it into one"
_LEARNT_WORD = (
    "a textual inversion: learnt words' embeddings, not a model; add its rows to the text encoder and its words to "
    "the tokenizer (diffusers: load_textual_inversion, then save_pretrained), and convert that"
)
#: (patterns that each match somewhere in some name, what that is); the first that fits.
_BY_NAMES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"^(lora_unet|lora_te\d?|lycoris)_.*\.(lora_(down|up)|alpha|hada_|lokr_|dora_scale)",),
     f"a LoRA in kohya's format, which changes another model; {_LORA}"),
    ((r"\.(lora_[AB]|lora_embedding_[AB])\b|\.lora\.(down|up)\.|_lora\.(down|up)\.|\.(lora_linear_layer)\.",),
     f"a LoRA in diffusers' or PEFT's format, which changes another model; {_LORA}"),
    ((r"\.(hada_w[12]|lokr_w[12])|(^|\.)(lora_(down|up)|lora_(mid))\.",),
     f"a LoRA or LyCORIS, which changes another model; {_BASE}"),
    ((r"^(control_model|input_hint_block)\.|^controlnet_(cond_embedding|down_blocks|mid_block)\.",),
     "a ControlNet, which steers another model's UNet; nothing here runs one"),
    ((r"^(image_proj(_model)?|ip_adapter)\.|^(image_proj|ip_adapter)$",),
     "an IP-Adapter, which conditions another model's UNet; nothing here runs one"),
    ((r"^adapter\.(body|conv_in)\.|^body\.\d+\.block", ), "a T2I-Adapter; nothing here runs one"),
    ((r"motion_modules\.|temporal_transformer\.",),
     "a motion module or video model (AnimateDiff and its like); nothing here draws video"),
    ((r"^string_to_(token|param)$|^emb_params$|^<.*>$|^\*$|^clip_[lg]$",), _LEARNT_WORD),
    ((r"^conditioner\.embedders\.", ), "Stable Diffusion XL (its second text encoder is there); only 1.x is read"),
    ((r"\.label_emb\.0\.0\.weight|^add_embedding\.linear_1\.", ),
     "a Stable Diffusion XL UNet (it takes an added embedding); only 1.x is read"),
    ((r"^cond_stage_model\.model\.transformer\.resblocks\.",),
     "Stable Diffusion 2.x (its text encoder is OpenCLIP's); only 1.x is read"),
    ((r"joint_blocks\.|^(model\.diffusion_model\.)?(joint_transformer_blocks|pos_embed\.proj)",),
     "Stable Diffusion 3 or another diffusion transformer; only Stable Diffusion 1.x is read"),
    ((r"double_blocks\.|single_transformer_blocks\.", ), "FLUX or its like; only Stable Diffusion 1.x is read"),
    ((r"^(adaln_single|caption_projection|proj_out|patch_embed)\.", r"transformer_blocks\.\d+\."),
     "a diffusion transformer (PixArt and its like); only Stable Diffusion 1.x is read"),
    ((r"^model\.layers\.\d+\.(self_attn|mlp)\.",),
     "a language model of LLaMA's kind; decoders that are read are GPT-J and GPT-NeoX"),
    ((r"^(bert|roberta|distilbert)\.|^embeddings\.word_embeddings\.",),
     "a text encoder of BERT's kind; decoders that are read are GPT-J and GPT-NeoX"),
    ((r"^(transformer\.)?h\.0\.attn\.c_attn\.",), "GPT-2; decoders that are read are GPT-J and GPT-NeoX"),
    ((r"^(transformer\.)?h\.0\.attn\.attention\.q_proj\.",),
     "GPT-Neo; decoders that are read are GPT-J and GPT-NeoX"),
    ((r"^(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.",), "a T5; no kind here has one"),
    ((r"^(vision_model|visual)\.", r"^vision_model\.encoder\.layers|^visual\.transformer\.resblocks"),
     "the image tower of a CLIP alone; the whole CLIP is read, with its text tower and both projections"),
    ((r"\.(qweight|qzeros|weight_scale|absmax|quant_map|weight\.quant_state)",),
     "a quantised model; convert the original in float16 or float32"),
)  # fmt: skip
#: Files that begin like this.
_BY_BYTES: tuple[tuple[bytes, int, str], ...] = (
    (b"GGUF", 0, "a GGUF file (llama.cpp, stable-diffusion.cpp); convert the original safetensors or .bin"),
    (b"lmgg", 0, "a GGML file; convert the original safetensors or .bin"),
    (b"tjgg", 0, "a GGML file; convert the original safetensors or .bin"),
    (b"\x89HDF", 0, "an HDF5 file (TensorFlow or Keras weights); convert the PyTorch ones"),
    (b"\x93NUMPY", 0, "a NumPy array; convert safetensors or PyTorch files"),
    (b"\x1f\x8b", 0, "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", 0, "a 7z archive; unpack it first"),
    (b"Rar!", 0, "a RAR archive; unpack it first"),
    (b"\xfd7zXZ", 0, "an xz archive; unpack it first"),
    (b"BZh", 0, "a bzip2 archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd archive; unpack it first"),
    (b"ustar", 257, "a tar archive; unpack it first"),
    (b"<!DOCTYPE", 0, "a web page, not weights: the download went wrong"),
    (b"<!doctype", 0, "a web page, not weights: the download went wrong"),
    (b"<html", 0, "a web page, not weights: the download went wrong"),
    (b"\x89PNG", 0, "a picture"),
    (b"\xff\xd8\xff", 0, "a picture"),
    (b"%PDF", 0, "a PDF"),
)
_BY_SUFFIX = {
    ".msgpack": "Flax weights (msgpack), which no kind here reads; convert the PyTorch ones",
    ".onnx": "an ONNX graph; convert the PyTorch weights",
    ".h5": "an HDF5 file (TensorFlow or Keras weights); convert the PyTorch ones",
    ".pb": "a TensorFlow graph; convert the PyTorch weights",
    ".tflite": "a TensorFlow Lite model; convert the PyTorch weights",
    ".index": "a TensorFlow checkpoint's index; convert the PyTorch weights",
    ".meta": "a TensorFlow checkpoint's graph; convert the PyTorch weights",
    ".mlmodel": "a Core ML model; convert the PyTorch weights",
    ".engine": "a TensorRT engine; convert the PyTorch weights",
    ".plan": "a TensorRT engine; convert the PyTorch weights",
    ".xml": "an OpenVINO graph; convert the PyTorch weights",
    ".json": "a settings file, not weights; name the folder it is in, or the file of weights",
    ".yaml": "a settings file, not weights; pass it with --config",
    ".yml": "a settings file, not weights; pass it with --config",
}


def named(names: Collection[str]) -> str | None:
    """What a set of tensors is, by their names; None where nothing here knows."""
    for patterns, what in _BY_NAMES:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return what
    return None


def learnt_word(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What one vector alone is, or a few rows; None for anything else."""
    if len(shapes) == 1 and next(iter(shapes.values()))[-1:] in ((768,), (1024,), (1280,)):
        return _LEARNT_WORD
    return None


def format_of(file: Path) -> str | None:
    """What a file is that is neither safetensors nor PyTorch's; None where nothing here knows."""
    with file.open("rb") as stream:
        start = stream.read(512)
    for mark, place, what in _BY_BYTES:
        if start[place:].startswith(mark) or (
            place == 0 and mark[:1] == b"<" and start.lstrip().startswith(mark)
        ):
            return what
    return _BY_SUFFIX.get(file.suffix.lower())


def folder_of(folder: Path) -> str | None:
    """What a folder without weights that are read holds instead; None where nothing here knows."""
    inside = sorted(folder.iterdir())
    shards = [file for file in inside if re.search(r"-\d+-of-\d+\.(safetensors|bin)$", file.name)]
    if shards:
        kind = shards[0].suffix
        stem = re.sub(r"-\d+-of-\d+$", "", shards[0].stem)
        return (
            f"holds {len(shards)} shards ({shards[0].name} and so on) but not their index, {stem}{kind}.index.json; "
            "fetch that too"
        )
    if (folder / "config.json").is_file() and '"components"' in (folder / "config.json").read_text(
        "utf-8", "replace"
    ):
        return "is a bundle already; it needs no conversion"
    if (folder / "adapter_config.json").is_file():
        return f"is a LoRA in PEFT's format, which changes another model; {_BASE}"
    for file in inside:
        what = format_of(file) if file.is_file() and file.suffix not in (".json", ".yaml", ".yml") else None
        if what is not None:
            return f"holds {file.name}: {what}"
    folders = [path.name for path in inside if path.is_dir()]
    if folders:
        return f"holds no weights itself, but folders: {', '.join(folders[:6])}; name one of them"
    return None
