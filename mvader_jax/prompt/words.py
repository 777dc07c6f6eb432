"""The words of a small closed world: those that a model was trained on, where they are few."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from mvader_jax.errors import UserError

#: Beside tokenizer.json, where the world is small.
WORDS_FILE = "words.json"
#: More words than these are a language of its own, in which a new word is nothing to tell.
_MOST = 1000
_WORD = re.compile(r"\w+")


def words_of(texts: Iterable[str], known: Iterable[str] = ()) -> frozenset[str] | None:
    """The words of the texts and those `known`; None where they are too many to be a closed world."""
    found = set(known)
    for text in texts:
        found.update(_WORD.findall(text))
        if len(found) > _MOST:
            return None
    return frozenset(found)


def unseen(texts: Iterable[str], known: frozenset[str]) -> list[str]:
    """The words that are not known, in order."""
    words = (word for text in texts for word in _WORD.findall(text))
    return [word for word in dict.fromkeys(words) if word not in known]


def unseen_sentence(words: Sequence[str]) -> str:
    """What a user is told of them."""
    listed = ", ".join(map(repr, words[:5])) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
    return f"no text that this bundle was trained on holds the word{'s' * (len(words) > 1)} {listed}"


def read_words(folder: pathlib.Path) -> frozenset[str] | None:
    """The words of a tokenizer's folder; None where it has none. Raises UserError where they are no list of words."""
    file = folder / WORDS_FILE
    if not file.is_file():
        return None
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {str(error)[:200]}") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{file} is no list of words")
    return frozenset(words)


def write_words(folder: pathlib.Path, words: frozenset[str] | None) -> None:
    """Writes the words beside the tokenizer, or removes those that are there."""
    file = folder / WORDS_FILE
    if words is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(sorted(words), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
