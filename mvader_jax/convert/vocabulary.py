"""A vocabulary beside a model: found, read with what its files say of it, and fitted to the model's rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mvader_jax.convert.kinds.base import has_vocabulary
from mvader_jax.convert.settings import Settings
from mvader_jax.errors import UserError
from mvader_jax.prompt.added_tokens import without_rows
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig


def load_vocabulary(
    folder: Path, own: TokenizerConfig | None, rows: int | None
) -> tuple[Tokenizer, tuple[str, ...]]:
    """(the tokenizer of a folder, or of one tokenizer.json, as a model reads it; notes).

    own: the model's config of its tokenizer, whose kind must be the folder's, and which says how long a
    prompt is. rows: of the model's embedding. Raises UserError where there is none, or they do not belong
    together.
    """
    if not folder.exists() or (folder.is_dir() and not has_vocabulary(folder)):
        raise UserError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt")
    tokenizer = Tokenizer.load(folder)
    config = tokenizer.config
    if own is not None:
        if config.kind != own.kind:
            raise UserError(
                f"{folder} has a tokenizer of kind {config.kind}, but this model reads {own.kind}'s"
            )
        config = dataclasses.replace(config, length=own.length, max_positions=own.max_positions)
    config = _told(folder, tokenizer, config)
    backend, notes = tokenizer.backend, []
    if rows is not None:
        backend, beyond = without_rows(backend, rows)
        if beyond:
            some = ", ".join(beyond[:3]) + (" and so on" if len(beyond) > 3 else "")
            notes.append(f"left out: {len(beyond)} added tokens that the model has no rows for ({some})")
    return Tokenizer(backend, config), tuple(notes)


def _told(folder: Path, tokenizer: Tokenizer, config: TokenizerConfig) -> TokenizerConfig:
    """The config with what tokenizer_config.json and special_tokens_map.json say of special tokens.

    Raises UserError where they say what is not done here.
    """
    ids: dict[str, int] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not folder.is_dir() or not (folder / name).is_file():
            continue
        settings = Settings.load(folder / name)
        settings.require({"add_prefix_space": (False,), "do_lower_case": (True,)})
        for key in ("bos_token", "eos_token", "pad_token"):
            token = _content(settings.get(key))
            number = None if token is None else tokenizer.backend.token_to_id(token)
            if token is not None and number is None and (config.add_bos or config.add_eos):
                raise UserError(
                    f"{folder / name}: {key} is {token[:40]!r}, which the vocabulary does not have"
                )
            if number is not None:
                ids[key] = number
    if config.add_bos or config.add_eos:
        for key, own in (("bos_token", config.bos_id), ("eos_token", config.eos_id)):
            if ids.get(key, own) != own:
                raise UserError(f"{folder}: its {key} is token {ids[key]}, but CLIP's is {own}")
        config = dataclasses.replace(config, pad_id=ids.get("pad_token", config.pad_id))
    return config


def _content(value: Any) -> str | None:
    """A special token as its files write it: a word, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
