"""The formats of LoRA files, each with what it calls a layer's tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection

from mvader_jax.convert.lora.names import Layer


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to name the factors of public models' layers.

    sign: fits the beginning of some tensor's name, and of no other format's before it in `FORMATS`. names: of a
    layer's (down, up). alpha: of its alpha; None where alphas stand in the file's metadata, as PEFT has them.
    spellings: (pattern, replacement) pairs that turn other names in such files into these.
    """

    name: str
    sign: str
    names: Callable[[Layer], tuple[str, str]]
    alpha: Callable[[Layer], str] | None = None
    spellings: tuple[tuple[str, str], ...] = ()

    def recognises(self, names: Collection[str]) -> bool:
        return any(re.match(self.sign, name) for name in names)

    def spelled(self, name: str) -> str:
        """A tensor's name as `names` has it."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name


def _kohya(layer: Layer) -> str:
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[layer.component]
    return f"{prefix}_{layer.inner.replace('.', '_')}"


def _peft(layer: Layer) -> tuple[str, str]:
    return f"{layer.name}.lora_A.weight", f"{layer.name}.lora_B.weight"


def _diffusers(layer: Layer) -> tuple[str, str]:
    """As diffusers' training scripts write: attention's matrices in its old words, all else in PEFT's."""
    if re.search(r"\.(to_[qkv]|to_out\.0)$", layer.name):
        return f"{layer.name}.lora.down.weight", f"{layer.name}.lora.up.weight"
    if re.search(r"\.(q|k|v|out)_proj$", layer.name):
        return f"{layer.name}.lora_linear_layer.down.weight", f"{layer.name}.lora_linear_layer.up.weight"
    return _peft(layer)


#: Of diffusers and PEFT, older ones included, into PEFT's.
_TO_PEFT = (
    (r"^(?=(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\.)", "unet."),
    (r"^text_encoder\.(?=encoder\.)", "text_encoder.text_model."),
    (r"\.processor\.", "."),
    (r"\.self_attn\.to_(q|k|v|out)_lora\.", r".self_attn.\1_proj.lora."),
    (r"\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.to_(q|k|v)_lora\.", r".to_\1.lora."),
    (r"\.(lora|lora_linear_layer)\.down\.", ".lora_A."),
    (r"\.(lora|lora_linear_layer)\.up\.", ".lora_B."),
)
_OLD = r".*(\.lora|_lora|\.lora_linear_layer)\.(down|up)\.weight$"
KOHYA = Format(
    "kohya",
    r"lora_(unet|te[12]?)_",
    lambda layer: (f"{_kohya(layer)}.lora_down.weight", f"{_kohya(layer)}.lora_up.weight"),
    lambda layer: f"{_kohya(layer)}.alpha",
)
DIFFUSERS = Format("diffusers", _OLD, _diffusers)
PEFT = Format("peft", r".*\.lora_[AB]\.weight$", _peft)
FORMATS = {format.name: format for format in (KOHYA, DIFFUSERS, PEFT)}


def reading(format: Format) -> Format:
    """The format with one spelling for all that such files are found to hold."""
    return format if format.alpha is not None else dataclasses.replace(PEFT, spellings=_TO_PEFT)
