"""Tokens that were added to a vocabulary after its BPE was trained, as transformers keeps them beside it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mvader_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

#: How a token is looked for in a text; transformers' defaults for one that was learnt.
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


def add_tokens(backend: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Adds the tokens of added_tokens.json and tokenizer_config.json to a vocabulary, under their own ids.

    Raises UserError where a file is malformed, or an id is another token's or leaves a gap.
    """
    import tokenizers

    for token, (content, flags) in sorted(_read(folder).items()):
        known = backend.token_to_id(content)
        if known is None:
            added = tokenizers.AddedToken(content, **flags)
            (backend.add_special_tokens if flags["special"] else backend.add_tokens)([added])
            known = backend.token_to_id(content)
        if known != token:
            raise UserError(
                f"{folder}: the added token {content!r} has the id {token} in its files, but {known} in the vocabulary"
            )


def added_tokens(backend: tokenizers.Tokenizer) -> dict[int, dict[str, Any]]:
    """{id: content and flags} of the tokens that are in no BPE, in order."""
    data = json.loads(backend.to_str())
    trained = data["model"].get("vocab", {})
    tokens = {
        int(token["id"]): {key: token[key] for key in ("content", *_FLAGS)}
        for token in data["added_tokens"]
        if trained.get(token["content"]) != token["id"]
    }
    return dict(sorted(tokens.items()))


def without_rows(backend: tokenizers.Tokenizer, rows: int) -> tuple[tokenizers.Tokenizer, list[str]]:
    """(the tokenizer without added tokens from id `rows` on, what they are): a model has no row for them.

    Raises UserError where the vocabulary itself goes beyond.
    """
    import tokenizers

    data = json.loads(backend.to_str())
    largest = max(data["model"].get("vocab", {}).values(), default=0)
    if largest >= rows:
        raise UserError(
            f"the tokenizer's vocabulary goes to token {largest}, but the model has {rows} rows: they do not belong "
            "together"
        )
    beyond = [token["content"] for token in data["added_tokens"] if token["id"] >= rows]
    if not beyond:
        return backend, []
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < rows]
    return tokenizers.Tokenizer.from_str(json.dumps(data)), beyond


def write_added_tokens(backend: tokenizers.Tokenizer, folder: pathlib.Path) -> dict[str, Any]:
    """Writes added_tokens.json, where there are any; returns what tokenizer_config.json says of them."""
    tokens = added_tokens(backend)
    if not tokens:
        return {}
    names = {token["content"]: number for number, token in tokens.items()}
    (folder / "added_tokens.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    special = [token["content"] for token in tokens.values() if token["special"]]
    return {
        "added_tokens_decoder": {str(number): token for number, token in tokens.items()},
        **({"additional_special_tokens": special} if special else {}),
    }


def _read(folder: pathlib.Path) -> dict[int, tuple[str, dict[str, bool]]]:
    """{id: (content, flags)} of both files. Raises UserError where they do not agree."""
    found: dict[int, tuple[str, dict[str, bool]]] = {}
    for content, token in _json(folder / "added_tokens.json").items():
        found[_id(token, folder)] = (content, dict(_FLAGS))
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        number = _id(int(token) if str(token).isdecimal() else token, folder)
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise UserError(f"{folder / 'tokenizer_config.json'}: the added token {token} has no content")
        content = entry["content"]
        if number in found and found[number][0] != content:
            raise UserError(
                f"{folder}: its files call the token {number} {found[number][0]!r} and {content!r}"
            )
        found[number] = (content, {key: bool(entry.get(key, default)) for key, default in _FLAGS.items()})
    return found


def _id(value: Any, folder: pathlib.Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{folder}: an added token has the id {str(value)[:40]!r}, which is no whole number")
    return value


def _json(file: pathlib.Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file} is not a JSON object")
    return data
