"""What a LoRA file holds that is not read here, by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mvader_jax.convert.tensors import plain

_SDXL = r"lora_te[12]_|text_encoder_2\.|lora_unet_(input_blocks|output_blocks|middle_block|label_emb)_|.*add_embedding"
#: (pattern of a tensor's name, what it is of), the most telling first.
_KINDS = (
    (_SDXL, "Stable Diffusion XL"),
    (
        r"(transformer|diffusion_model|base_model\.model\.transformer)\.|lora_transformer_|lora_unet_(single|double|joint)_"
        r"|text_encoder_3\.",
        "a diffusion transformer (SD 3, Flux and others)",
    ),
    (r".*(dora_scale|lora_magnitude_vector)", "DoRA, which scales the columns of the changed weights"),
    (r".*\.hada_", "LoHa, a Hadamard product of two low-rank matrices"),
    (r".*[._]lokr_", "LoKr, a Kronecker product"),
    (r".*\.lora_mid\.", "LoCon's CP decomposition, a convolution in three factors"),
    (r".*\.(oft_|boft_|R\.)", "OFT, a rotation of the weights"),
    (r".*(\.on_input$|\.lora_ia3|ia3_l)", "IA3, a scale for each activation"),
    (r".*\.(diff|diff_b|set_weight)$", "the difference of whole weights, not a low-rank one"),
    (r".*\.(a1|a2|b1|b2|c1|c2)\.weight$", "GLoRA"),
    (r".*\.vera_lambda_", "VeRA"),
    (r".*\.lora_[AB]\.bias$|.*\.lora_(up|down)\.bias$", "a LoRA with biases"),
    (r"bundle_emb\.|string_to_param|emb_params|clip_l$", "a textual inversion"),
    (r"base_model\.model\.", "a folder of PEFT's own (adapter_model), without the name of a component"),
)


def kind_of(name: str) -> str | None:
    """What a tensor of that name is of; None where nothing is known of it."""
    return next((what for pattern, what in _KINDS if re.match(pattern, name)), None)


def unread(names: Iterable[str]) -> str:
    """Why tensors of these names are not read, in words: the first that tells, and how many there are."""
    listed = list(names)
    told = next(((name, what) for name in listed if (what := kind_of(name))), None)
    count = f" ({len(listed)} such tensors)" if len(listed) > 1 else ""
    if told is not None:
        return f"it holds {plain(told[0])}{count}: {told[1]}"
    return f"it holds {plain(listed[0])}{count}, which is no factor of a layer that this model has"
