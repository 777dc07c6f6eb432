"""Settings as data: dataclasses <-> plain JSON values, and typed overrides from a command line.

A config travels as JSON (`to_dict`, `from_dict`) and is changed by typed overrides
(`override(config, ["a.b=3"])`). An unknown key is an error that names the nearest known one. Settings of
several kinds are a `Choice`. A dataclass that derives from `Checked` is made with values of the declared types
and within their `bounds`, or not at all. A dataclass may say where keys of earlier versions stand now, in a class
variable `moved`: {"count": "source.num_records"}, or "..name" for a key of the settings around it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

import numpy as np

from mvader_jax.bounds import Bound
from mvader_jax.errors import UserError

T = TypeVar("T")

#: The key of a choice's name among its settings.
KIND = "kind"


class Checked:
    """Base of the dataclasses that hold settings: every field is of its type and within its bounds.

    Lists become tuples where a tuple is declared. A class with rules between its fields calls this
    `__post_init__` first. Raises UserError naming the field, its value and what is accepted.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, hint in type_hints(cls).items():
            value = getattr(self, name)
            converted = convert(hint, value, f"{cls.__name__}.{name}")
            if converted is not value:
                object.__setattr__(self, name, converted)


class Choice(Checked):
    """Base of settings of several kinds, of which a field holds one. Every kind is a frozen dataclass:

        class Source(Choice): ...
        Source.kinds = {"scenes": Scenes, "records": Records}

    As data {"kind": "scenes", "num_records": 9}, or the kind's name alone for its defaults.
    """

    kinds: ClassVar[Mapping[str, type]] = {}

    @property
    def kind(self) -> str:
        """The name that its kind is registered under."""
        return next(name for name, cls in self.kinds.items() if cls is type(self))


@functools.cache
def type_hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass' fields, or of a function's parameters, with their bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return hints


def to_dict(config: Any) -> Any:
    """A config as plain JSON values."""
    if dataclasses.is_dataclass(config):
        kind: dict[str, Any] = {KIND: config.kind} if isinstance(config, Choice) else {}
        return kind | {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """The inverse of `to_dict`; missing keys take their defaults.

    Raises UserError for an unknown key or a value of the wrong type.
    """
    return typing.cast(T, convert(cls, data, where))


def modern(cls: type, data: Any) -> Any:
    """What `to_dict` gave of a `cls` of an earlier version, under today's keys: those that have `moved` stand
    where they belong, and those that the chosen kind of settings does not have are left out."""
    return _modern(cls, data)[0]


def override(config: T, assignments: Iterable[str]) -> T:
    """`config` with each `a.b=value` applied; values are JSON, or bare words where text is expected.

    Raises UserError for an unknown key (naming the nearest), a missing '=' or a value of the wrong type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UserError(
                f"{assignment!r} is not an override; write key=value, as in optimizer.weight_decay=0.01"
            )
        config = _set(config, type(config), path.split("."), text, path)
    return config


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...' or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def _set(config: Any, hint: Any, keys: list[str], text: str, path: str) -> Any:
    if not keys:
        return convert(hint, _literal(text), path)
    key, rest, around = keys[0], keys[1:], path.split(".")[: -len(keys)]
    if isinstance(config, Mapping):
        # Settings that are whole may come in under a new name.
        if key not in config and (rest or not isinstance(_literal(text), Mapping)):
            raise UserError(f"unknown key {key!r} in {path!r}; {nearest(key, config)}")
        value_hint = typing.get_args(_without_none(hint))[1]
        return {**config, key: _set(config.get(key), value_hint, rest, text, path)}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        what = "is none" if config is None else "holds no settings"
        raise UserError(f"cannot set {path!r}: {'.'.join(around)} {what}")
    hints = type_hints(type(config))
    if key not in hints:
        place = getattr(config, "moved", {}).get(key)
        if place is not None:
            while place.startswith(".."):
                around, place = around[:-1], place[2:]
            raise UserError(
                f"the key of {path!r} has moved; write {'.'.join([*around, place, *rest])}={text}"
            )
        of = f" ({config.kind})" if isinstance(config, Choice) else ""
        raise UserError(f"unknown key {key!r} in {path!r}{of}; {nearest(key, hints)}")
    value = _set(getattr(config, key), hints[key], rest, text, path)
    return dataclasses.replace(config, **{key: value})


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also thousands of digits, or of brackets
        words = {"True": True, "False": False, "None": None}
        return words.get(text, text)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` says. Raises UserError, naming `where`, for another type or out of bounds."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        bare, *notes = typing.get_args(hint)
        converted = convert(bare, value, where)
        for bound in notes:
            if isinstance(bound, Bound) and converted is not None and not bound.accepts(converted):
                raise UserError(f"{where} is {_shown(value)}; accepted: {bound.accepted}")
        return converted
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where)
    if origin is Literal:
        # 1 equals True.
        if not any(value == one and isinstance(value, type(one)) for one in typing.get_args(hint)):
            accepted = ", ".join(map(str, typing.get_args(hint)))
            raise UserError(f"{where} is {_shown(value)}; accepted: {accepted}")
        return value
    if _is_choice(hint):
        return _convert_choice(hint, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return _convert_dataclass(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(
                convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
            )
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        _, value_hint = typing.get_args(hint)
        return {str(k): convert(value_hint, v, f"{where}.{k}") for k, v in value.items()}
    elif hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return _finite(value, where)
    elif hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    elif hint is str and isinstance(value, (int, float)):
        return str(value)
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    raise UserError(f"{where} is {_shown(value)}; expected {_expected(hint, value)}")


def _expected(hint: Any, value: Any) -> str:
    """What a type takes, in words; where it takes several of `value`, how that is written."""
    if typing.get_origin(hint) is tuple and isinstance(value, str):
        return f"several, as in ({_shown(value)},)"
    if isinstance(typing.get_origin(hint), type) and issubclass(typing.get_origin(hint), Mapping):
        return (
            f"{getattr(typing.get_args(hint)[1], '__name__', 'settings')}s by their names, as {{name: ...}}"
        )
    return str(getattr(hint, "__name__", hint))


def _finite(value: numbers.Real, where: str) -> float:
    """Finite in float32 too, which is what a device computes with."""
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise UserError(f"{where} is {_shown(value)}; expected a finite number (of float32)")
    return number


def _shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    failure: UserError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(option, value, where)
        except UserError as error:
            # The most telling complaint is that of the option which reads deepest into the value.
            if failure is None or len(str(error)) > len(str(failure)):
                failure = error
    assert failure is not None
    raise failure


def _convert_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {_shown(value)}; expected the fields of {cls.__name__}")
    if issubclass(cls, Choice) and cls.kinds.get(str(value.get(KIND))) is cls:
        value = {key: item for key, item in value.items() if key != KIND}
    hints = type_hints(cls)
    for key in value:
        if key not in hints:
            raise UserError(f"unknown key {key!r} in {where}; {nearest(key, hints)}")
    try:
        return cls(**{key: convert(hints[key], item, f"{where}.{key}") for key, item in value.items()})
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def _is_choice(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Choice) and hint not in hint.kinds.values()


def _convert_choice(base: type[Choice], value: Any, where: str) -> Any:
    if isinstance(value, base):
        return value
    settings = {KIND: value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or KIND not in settings:
        raise UserError(
            f"{where} is {_shown(value)}; expected one of {', '.join(base.kinds)}, or its settings"
        )
    name = settings[KIND]
    if name not in base.kinds:
        raise UserError(f"{where} is {_shown(name)}; accepted: {', '.join(base.kinds)}")
    return _convert_dataclass(base.kinds[name], {k: v for k, v in settings.items() if k != KIND}, where)


def _modern(hint: Any, data: Any) -> tuple[Any, dict[str, Any]]:
    """(the data under today's keys, {path: value} of what belongs into the settings around it)."""
    hint = _without_none(hint)
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(data, Mapping):
        return {key: _modern(typing.get_args(hint)[1], value)[0] for key, value in data.items()}, {}
    if _is_choice(hint):
        data = {KIND: data} if isinstance(data, str) else data
        hint = hint.kinds.get(data[KIND]) if isinstance(data, Mapping) and KIND in data else None
        if hint is not None:
            data = {key: value for key, value in data.items() if key == KIND or key in type_hints(hint)}
    if not dataclasses.is_dataclass(hint) or not isinstance(data, Mapping):
        return data, {}
    hints, moved = type_hints(typing.cast(type, hint)), getattr(hint, "moved", {})
    out = {key: value for key, value in data.items() if key in hints or key not in moved}
    around: dict[str, Any] = {}
    for key in data.keys() - out.keys():
        place = moved[key]
        if place.startswith(".."):
            around[place[2:]] = data[key]
        else:
            _put(out, place, data[key])
    # Choices last: what a kind does not have is left out of all that was put there.
    for key in sorted(hints.keys() & out.keys(), key=lambda key: _is_choice(hints[key])):
        out[key], found = _modern(hints[key], out[key])
        for place, value in found.items():
            _put(out, place, value)
    return out, around


def _put(settings: dict[str, Any], place: str, value: Any) -> None:
    """Sets `settings` at a dotted path; on the way a choice's bare name becomes its settings."""
    *way, last = place.split(".")
    for key in way:
        found = settings.get(key, {})
        settings[key] = {KIND: found} if isinstance(found, str) else dict(found)
        settings = settings[key]
    settings[last] = value
