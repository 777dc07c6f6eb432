"""Opens a source and asks the kinds which of them it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mvader_jax.convert.foreign import learnt_word, named
from mvader_jax.convert.kinds import KINDS
from mvader_jax.convert.kinds.base import (
    Kind,
    Options,
    Source,
    has_vocabulary,
    open_weights,
    settings_of,
)
from mvader_jax.convert.tensors import Weights, plain
from mvader_jax.errors import UserError


def kind_names() -> tuple[str, ...]:
    """What `--as` accepts."""
    return tuple(dict.fromkeys(kind.name for kind in KINDS))


def open_source(path: Path, kind: str | None, options: Options) -> Source:
    """Opens a file or folder and says what becomes of every tensor in it.

    kind: one of `kind_names` in place of recognising it. Raises UserError where that cannot be.
    """
    if kind is not None and kind not in kind_names():
        raise UserError(f"unknown kind {kind!r}; accepted: {', '.join(kind_names())}")
    _refuse_absent(path)
    if path.is_dir() and (whole := next((k for k in KINDS if k.recognises_folder(path)), None)):
        if kind not in (None, whole.name):
            raise UserError(f"{path} is a diffusers folder, not {kind}")
        return whole.read_folder(path, options)
    weights = open_weights(path, options)
    chosen = _chosen(kind, weights) if kind is not None else recognise(path, weights)
    if options.ema and not chosen.has_ema:
        raise UserError(f"{path} is {chosen.name}, which has no moving average to choose; leave out --ema")
    source = chosen.read(weights, settings_of(path, options), options)
    folder = path if path.is_dir() else path.parent
    if source.model.tokenizer is not None and has_vocabulary(folder):
        source = dataclasses.replace(source, tokenizer=folder)
    return source


def recognise(path: Path, weights: Weights) -> Kind:
    """The kind of a source by the names of its tensors. Raises UserError, saying what it is, for others."""
    for kind in KINDS:
        if kind.recognises(weights.tensors):
            return kind
    what = named(weights.tensors) or learnt_word({n: t.shape for n, t in weights.tensors.items()})
    if what is not None:
        raise UserError(f"{path} is {what}")
    some = ", ".join(plain(name[:60]) for name in list(weights.tensors)[:3])
    raise UserError(
        f"{path} is none of the kinds that are known ({', '.join(kind_names())}): its tensors are named "
        f"{some or 'nothing'}"
    )


def _chosen(name: str, weights: Weights) -> Kind:
    """The kind of that name; of several, the one whose signs are there."""
    of_name = [kind for kind in KINDS if kind.name == name]
    return next((kind for kind in of_name if kind.recognises(weights.tensors)), of_name[0])


def _refuse_absent(path: Path) -> None:
    if path.exists():
        return
    parts = path.parts
    remedy = ""
    if len(parts) == 2 and not path.parent.exists() and parts[0] not in (".", ".."):
        remedy = f"; a repository of the Hugging Face hub is named hf:{path}"
    raise UserError(f"{path} does not exist{remedy}")
