"""The settings beside a source's weights: what shapes cannot tell, read from a config.json or --config."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvader_jax.convert.tensors import Tensor
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """values: the keys of a JSON file; where: its name for messages, or "" where there is none."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str = ""

    @classmethod
    def load(cls, file: Path) -> Settings:
        """Raises UserError for a file that is no JSON object."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{file} is not a JSON object")
        return cls(values, str(file))

    @property
    def given(self) -> bool:
        return bool(self.values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; null counts as absent."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number. Raises UserError where it is absent without default, or something else."""
        value = self.get(key, default)
        if value is None:
            raise UserError(f"{self.where} has no {key!r}, which the weights' shapes do not tell")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {key} is {value!r}, not a positive whole number")
        return value

    def heads(self, key: str, default: int | None = None) -> int | tuple[int, ...]:
        """A number of heads, or one a level. Raises UserError for anything else."""
        value = self.get(key)
        if not isinstance(value, list):
            return self.whole(key, default)
        return tuple(Settings({key: one}, self.where).whole(key) for one in value)

    def inner(self, key: str) -> Settings:
        """The object under a key, empty where there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: {key} is {value!r}, not an object")
        return Settings(value, f"{self.where}: {key}")

    def agree(self, key: str, value: Any) -> None:
        """Raises UserError where the settings say otherwise than the weights."""
        said = self.get(key)
        if isinstance(said, list) and isinstance(value, tuple):
            said = tuple(said)
        if said is not None and said != value:
            raise UserError(f"{self.where} says {key} is {said}, but the weights have {value}")

    def require(self, accepted: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises UserError for a key whose value is not among those the modules here compute."""
        for key, values in accepted.items():
            said = self.get(key)
            if said is not None and said not in values:
                raise UserError(
                    f"{self.where}: {key} is {said!r}, which is not supported; accepted: "
                    f"{', '.join(map(repr, values)) or 'null'}"
                )


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that tells the dimensions. Raises UserError where it is missing or odd."""
    if name not in tensors:
        raise UserError(f"the weights have no {name}, so their dimensions cannot be told")
    shape = tensors[name].shape
    if len(shape) != ndim or 0 in shape:
        raise UserError(f"{name} is {list(shape)}; {ndim} dimensions were expected")
    return shape


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest index that `pattern`, whose first group is a number, finds in the names."""
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def divide(width: int, heads: int, what: str) -> int:
    """width / heads. Raises UserError where they do not divide."""
    if width % heads:
        raise UserError(f"{what}: a width of {width} does not divide by {heads} heads")
    return width // heads


def spelled(tensors: Mapping[str, Tensor], spellings: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The tensors by the names that a map's links use."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in spellings:
            name = re.sub(pattern, replacement, name)
        result.setdefault(name, tensor)
    return result
