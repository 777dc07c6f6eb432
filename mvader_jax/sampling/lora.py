"""LoRA files beside a bundle that is drawn with: its weights changed by them, as strongly as is wanted."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mvader_jax.errors import UserError
from mvader_jax.lora.factors import Lora, changed
from mvader_jax.models.quantised import SCALE
from mvader_jax.storage.bundle import Bundle

#: The file of a folder that diffusers writes.
IN_FOLDER = "pytorch_lora_weights.safetensors"
#: (down, up, scale of each layer) of weights by their paths, `component/path`.
Arrays = dict[str, tuple[Any, Any, Any]]


@dataclasses.dataclass(frozen=True)
class Applied:
    """A LoRA file and how strongly it acts: W + strength * alpha / rank * down @ up."""

    file: Path
    strength: float = 1.0

    @classmethod
    def of(cls, value: Any) -> Applied:
        """ "FILE" or "FILE@0.8", or a path. Raises UserError for anything else, and a file that is not there."""
        if not isinstance(value, (str, Path)) or not str(value):
            raise UserError(f"a LoRA is named by {value!r:.80}; expected FILE or FILE@STRENGTH")
        text = str(value)
        name, mark, number = text.rpartition("@")
        if not mark or Path(text).exists():
            name, number = text, "1"
        if not name:
            raise UserError(f"a LoRA is named by {text!r}; expected FILE or FILE@STRENGTH")
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise UserError(
                f"the strength of {text!r} is {number!r}; expected a number, as in style.safetensors@0.8"
            )
        if not Path(name).exists():
            raise UserError(f"{name} does not exist; a LoRA is a .safetensors file")
        return cls(Path(name), strength)

    def recorded(self) -> str:
        """As it is written in a picture's settings."""
        return f"{self.file.name}@{self.strength:g}"

    def digest(self) -> str:
        """The SHA-256 of the file, with the strength."""
        file = self.file / IN_FOLDER if self.file.is_dir() else self.file
        return f"{hashlib.sha256(file.read_bytes()).hexdigest()}@{self.strength!r}"


class Loras:
    """A bundle, and what LoRA files make of it. The bundle's own weights stay: another strength starts from them.

    Weights are changed once, before anything is drawn, by a program that takes the strengths as numbers: it, and those
    that draw, are compiled once. A changed weight stands in memory beside its original.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._read: dict[Path, Arrays] = {}
        self._change: Any = jax.jit(_change)

    @property
    def compiled(self) -> int:
        """How many programs that change weights this process has compiled: one for each set of weights."""
        return int(self._change._cache_size())

    def with_files(self, applied: Sequence[Applied]) -> Bundle:
        """The bundle as several LoRA files change it; itself where there are none.

        Raises UserError for a file that cannot be read, or is of another model than the bundle's.
        """
        if not applied:
            return self.bundle
        for one in applied:
            if one.file not in self._read:
                self._read[one.file] = self._arrays(one.file)
        flat = flatten_dict(self.bundle.components, sep="/")
        loras = [self._read[one.file] for one in applied]
        weights = {path: flat[path] for path in sorted({path for lora in loras for path in lora})}
        strengths = [np.float32(one.strength) for one in applied]
        made = self._change(weights, loras, strengths)
        made = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), made, weights)
        said = [one.recorded() for one in applied]
        touched = {path.split("/")[0] for path in weights}
        records = {
            **self.bundle.records,
            **{name: {**self.bundle.records.get(name, {}), "lora": said} for name in touched},
        }
        components = unflatten_dict({**flat, **made}, sep="/")
        return dataclasses.replace(self.bundle, components=components, records=records)

    def _arrays(self, file: Path) -> Arrays:
        from mvader_jax.convert.lora.files import read_lora  # it lies above

        lora, _ = read_lora(file, self.bundle.model)
        check_lora(self.bundle, lora, str(file))
        return arrays_of(lora)


def check_lora(bundle: Bundle, lora: Lora, what: str) -> None:
    """Raises UserError where a bundle lacks a component that a LoRA changes, or holds its weights as integers."""
    for component, weights in lora.weights.items():
        if component not in bundle.components:
            raise UserError(
                f"{what} changes the {component}, and this bundle has none; it holds "
                f"{', '.join(sorted(bundle.components))}"
            )
        held = flatten_dict(bundle.components[component], sep="/")
        if any(f"{path.rpartition('/')[0]}/{SCALE}" in held for path in weights):
            raise UserError(
                f"{what} changes matrices of the {component} that are kept as integers; --frozen-dtype bfloat16 keeps numbers"
            )


def arrays_of(lora: Lora) -> Arrays:
    """A LoRA's factors by path."""
    return {
        f"{component}/{path}": (factors.down, factors.up, factors.scale)
        for component, weights in lora.weights.items()
        for path, factors in weights.items()
    }


def _change(
    weights: Mapping[str, jax.Array], loras: Sequence[Arrays], strengths: Sequence[jax.Array]
) -> dict[str, jax.Array]:
    """All changes are added in float32, and rounded once to the weight's dtype."""
    made = {}
    for path, weight in weights.items():
        total = weight.astype(jnp.float32)
        for lora, strength in zip(loras, strengths, strict=True):
            if path in lora:
                down, up, scale = lora[path]
                total = changed(total, down, up, scale * strength)
        made[path] = total.astype(weight.dtype)
    return made
