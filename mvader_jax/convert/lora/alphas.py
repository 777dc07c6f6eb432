"""PEFT's settings of a LoRA, which diffusers keeps in the metadata of a file: the alphas that its tensors do not tell."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvader_jax.convert.lora.names import Layer
from mvader_jax.errors import UserError

#: The key of the metadata.
KEY = "lora_adapter_metadata"
#: Settings of PEFT under which a LoRA is another computation.
_REFUSED = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "arrow_config")


def read_alphas(
    metadata: Mapping[str, str], layers: Sequence[Layer], ranks: Mapping[Layer, int]
) -> dict[Layer, np.ndarray | None]:
    """The alpha of each layer; None, which is its rank, where the metadata says nothing.

    Raises UserError for metadata that cannot be read, and for settings that are not computed here.
    """
    found: dict[Layer, np.ndarray | None] = dict.fromkeys(layers)
    try:
        said = json.loads(metadata.get(KEY, "{}"))
        if not isinstance(said, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(f"its {KEY} is no JSON object") from None
    for layer in layers:
        own = {
            key.partition(".")[2]: value
            for key, value in said.items()
            if key.startswith(f"{layer.component}.")
        }
        if not own:
            continue
        for name in _REFUSED:
            if own.get(name):
                raise UserError(f"its {KEY} sets {name}, which is not computed here")
        patterns = own.get("alpha_pattern") or {}
        alpha = own.get("lora_alpha")
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", layer.inner):
                alpha = value
                break
        if alpha is None:
            continue
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise UserError(f"its {KEY} says an alpha of {alpha!r:.40} for {layer.name}")
        # Rank-stabilised: alpha / sqrt(rank) in place of alpha / rank.
        factor = ranks[layer] ** 0.5 if own.get("use_rslora") else 1.0
        found[layer] = np.array(alpha * factor, np.float64)
    return found


def write_alphas(alphas: Mapping[Layer, np.ndarray | None], ranks: Mapping[Layer, int]) -> dict[str, str]:
    """The metadata that says them; nothing where every alpha is its rank, as readers take it without."""
    said: dict[str, Any] = {}
    values = {layer: float(ranks[layer] if alpha is None else alpha) for layer, alpha in alphas.items()}
    for component in dict.fromkeys(layer.component for layer in alphas):
        own = [layer for layer in alphas if layer.component == component]
        if all(values[layer] == ranks[layer] for layer in own):
            continue
        names = {layer: _module(layer) for layer in own}
        rank = collections.Counter(ranks[layer] for layer in own).most_common(1)[0][0]
        alpha = collections.Counter(values[layer] for layer in own).most_common(1)[0][0]
        settings = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {names[one]: ranks[one] for one in own if ranks[one] != rank},
            "alpha_pattern": {names[one]: values[one] for one in own if values[one] != alpha},
            "target_modules": sorted(names.values()),
        }
        said |= {f"{component}.{key}": value for key, value in settings.items()}
    return {KEY: json.dumps(said, indent=2, sort_keys=True)} if said else {}


def _module(layer: Layer) -> str:
    """A layer's name as a pattern of PEFT's; it fits with and without `text_model.` before it."""
    return layer.inner.removeprefix("text_model.")
