"""The settings beside a source's weights: what shapes cannot tell, read from a config.json or --config.

Every key is read, or stands on a kind's list of keys that change nothing, or is refused by its name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.convert.tensors import Tensor, plain, reason, shown
from mvader_jax.errors import UserError

#: No dimension of a public model comes near; beyond it a number is a slip.
_LARGEST = 1 << 24


@dataclasses.dataclass(frozen=True)
class Settings:
    """values: the keys of a JSON file; where: its name for messages, or "" where there is none."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str = ""
    _read: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)

    @classmethod
    def load(cls, file: Path) -> Settings:
        """From JSON, or YAML where the file is named so. Raises UserError for anything but one object."""
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix in (".yml", ".yaml"):
                import yaml

                try:
                    values = yaml.safe_load(text)
                except yaml.YAMLError as error:
                    raise ValueError(str(error)) from None
            else:
                values = json.loads(text, object_pairs_hook=_no_repeats)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read {file}: {reason(error)}") from None
        if not isinstance(values, dict):
            raise UserError(f"{file} is not a JSON object")
        return cls({str(key): value for key, value in values.items()}, str(file))

    @property
    def given(self) -> bool:
        return bool(self.values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; null counts as absent."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number. Raises UserError where it is absent without default, or something else."""
        value = self.get(key, default)
        if value is None:
            raise UserError(f"{self._name} has no {key!r}, which the weights' shapes do not tell")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            what = "positive whole number" if least == 1 else f"whole number from {least} on"
            raise UserError(f"{self._name}: {key} is {shown(value)}, not a {what}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive finite number. Raises UserError for anything else."""
        value = self.get(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not 0 < value < 1e30 or not math.isfinite(value):
            raise UserError(f"{self._name}: {key} is {shown(value)}, not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false. Raises UserError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self._name}: {key} is {shown(value)}, not true or false")
        return value

    def many(self, key: str, default: Iterable[int] | None = None) -> tuple[int, ...]:
        """A list of positive whole numbers, not empty. Raises UserError for anything else."""
        value = self.get(key, None if default is None else list(default))
        if not isinstance(value, list) or not value:
            raise UserError(f"{self._name}: {key} is {shown(value)}, not a list of positive whole numbers")
        return tuple(Settings({key: one}, self.where).whole(key) for one in value)

    def words(self, key: str, default: Iterable[str] | None = None) -> tuple[str, ...]:
        """A list of words. Raises UserError for anything else."""
        value = self.get(key, None if default is None else list(default))
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UserError(f"{self._name}: {key} is {shown(value)}, not a list of words")
        return tuple(value)

    def heads(self, key: str, default: int | None = None) -> int | tuple[int, ...]:
        """A number of heads, or one per level. Raises UserError for anything else."""
        return self.many(key) if isinstance(self.get(key), list) else self.whole(key, default)

    def side(self, key: str, default: int) -> int:
        """Pixels per side of a square: a number, or a list of two equal ones. Raises UserError otherwise."""
        value = self.get(key)
        if not isinstance(value, list):
            return self.whole(key, default)
        sides = self.many(key)
        if len(sides) != 2 or sides[0] != sides[1]:
            raise UserError(f"{self._name}: {key} is {shown(value)}; accepted are squares")
        return sides[0]

    def inner(self, key: str) -> Settings:
        """The object under a key, empty where there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise UserError(f"{self._name}: {key} is {shown(value)}, not an object")
        return Settings({str(inner): one for inner, one in value.items()}, f"{self._name}: {key}")

    def agree(self, key: str, value: Any) -> None:
        """Raises UserError where the settings say otherwise than the weights."""
        said = self.get(key)
        if isinstance(said, list) and isinstance(value, tuple):
            said = tuple(said)
        if said is not None and (said != value or isinstance(said, bool) != isinstance(value, bool)):
            raise UserError(f"{self._name} says {key} is {shown(said)}, but the weights have {value}")

    def require(self, accepted: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises UserError for a key whose value is not among those the modules here compute."""
        for key, values in accepted.items():
            said = self.get(key)
            if said is None or any(said == one and type(said) in _alike(one) for one in values):
                continue
            raise UserError(
                f"{self._name}: {key} is {shown(said)}, which is not supported; accepted: "
                f"{', '.join(map(repr, values)) or 'null'}"
            )

    def done(self, unused: Mapping[str, str]) -> None:
        """Raises UserError for keys that nobody read and that are not known to change nothing.

        unused: {pattern of a whole key: why it changes nothing}. null is no setting.
        """
        strange = [
            f"{plain(key)} is {shown(value)}"
            for key, value in self.values.items()
            if value is not None
            and key not in self._read
            and not any(re.fullmatch(pattern, key) for pattern in unused)
        ]
        if strange:
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            raise UserError(
                f"{self._name}: {'; '.join(strange[:3])}{more}: not known here, so it may ask for another "
                "computation; where it changes nothing, take it out (or pass --config with a copy without it)"
            )

    @property
    def _name(self) -> str:
        return self.where or "the settings"


def _alike(value: Any) -> tuple[type, ...]:
    """Types that may stand for a value: 1 for 1.0, but not true for 1."""
    return (int, float) if type(value) in (int, float) else (type(value),)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {plain(sorted({n for n in names if names.count(n) > 1})[0])} twice")
    return result


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that tells the dimensions. Raises UserError where it is missing or odd."""
    if name not in tensors:
        raise UserError(f"the weights have no {name}, so their dimensions cannot be told")
    shape = tensors[name].shape
    if len(shape) != ndim or 0 in shape:
        raise UserError(f"{name} is {list(shape)}; {ndim} dimensions were expected")
    return shape


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest index that `pattern`, whose first group is a number, finds in the names.

    Raises UserError for an index that no model reaches.
    """
    found = [int(match[1][:9]) for name in tensors if (match := re.match(pattern, name))]
    last = max(found, default=-1)
    if last >= 10_000:
        raise UserError(f"the weights name a layer {last}, which no model here has")
    return last + 1


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
