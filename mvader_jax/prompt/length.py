"""Prompts of more tokens than a model has positions: cut, refused, or read in chunks."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from mvader_jax.condition import PADDING
from mvader_jax.errors import Notice, UserError
from mvader_jax.prompt.elements import LONG_PROMPTS, LongPrompts, Prompt
from mvader_jax.prompt.tokenizer import Tokenizer

#: Characters of what is cut that are shown.
_SHOWN = 60


def notice(sentence: str) -> None:
    """Tells what a user should know, as a warning."""
    warnings.warn(sentence, Notice, stacklevel=2)


@dataclasses.dataclass
class Part:
    """An element in tokens. index: which image token of the row each is, -1 for text; factors: on its weight."""

    ids: Sequence[int]
    index: Sequence[int]
    weight: float
    factors: Float64[np.ndarray, " _"]

    @property
    def is_text(self) -> bool:
        return not self.index or self.index[0] < 0


class Framed(NamedTuple):
    """A prompt's positions: token ids, which image token of the row each is, log weights, and the number of the element
    that each belongs to; -1 for none."""

    ids: list[int]
    image_index: list[int]
    log_weights: list[float]
    element: list[int]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How prompts are fitted into a model's positions.

    limit: positions of a prompt, or of each chunk; chunks: whether the embedder reads several; long_prompts: overrides
    the prompts' own; notify: told what is cut.
    """

    tokenizer: Tokenizer
    limit: int
    chunks: bool
    long_prompts: LongPrompts | None
    notify: Callable[[str], None]

    def whole(self, prompt: Prompt, parts: Sequence[Part]) -> bool:
        """Whether all of a prompt's tokens are read. Raises UserError where they neither are nor may be cut."""
        way = self.long_prompts or prompt.long_prompts
        if way == "chunk" and not self.chunks:
            accepted = " and ".join(one for one in LONG_PROMPTS if one != "chunk")
            raise UserError(
                f"long_prompts is chunk, but this bundle's embedder reads a prompt in one piece; accepted: {accepted}"
            )
        fits = self._over(parts) <= 0
        if not fits and (
            way == "refuse" or (way == "cut" and self._over([p for p in parts if not p.is_text]) > 0)
        ):
            raise UserError(self._too_long(parts))
        return fits or way == "chunk"

    def cut(self, parts: Sequence[Part]) -> list[Part]:
        """The parts without as many tokens as are too many, from the end of the last text on; pictures stay whole."""
        over, total = self._over(parts), self.limit + self._over(parts)
        kept, lost = [], []
        for part in reversed(parts):
            count = len(part.ids) - min(over, len(part.ids)) if part.is_text else len(part.ids)
            over -= len(part.ids) - count
            lost.append(part.ids[count:])
            kept.append(Part(part.ids[:count], part.index[:count], part.weight, part.factors[:count]))
        words = " ".join(self.tokenizer.decode(ids).strip() for ids in reversed(lost) if ids)
        shown = words if len(words) <= _SHOWN else f"{words[: _SHOWN - 3]}..."
        chunks = "; long_prompts chunk reads all of it" if self.chunks else ""
        self.notify(
            f"a prompt has {total} tokens, more than this model's {self.limit} positions, and is cut: left out is "
            f"{shown!r}{chunks}"
        )
        return kept[::-1]

    def framed(self, parts: Sequence[Part], logs: Float32[np.ndarray, " S"], null: bool) -> Framed:
        """The parts' tokens with BOS and EOS around them, or around each chunk of them."""
        config = self.tokenizer.config
        before = [config.bos_id] if config.add_bos and config.bos_id is not None else []
        after = [config.eos_id] if config.add_eos or null else []
        ids = [token for part in parts for token in part.ids]
        index = [i for part in parts for i in part.index]
        element = [number for number, part in enumerate(parts) for _ in part.ids]
        size = len(ids) if len(ids) <= self._room(null) else self._room(null)
        framed = Framed([], [], [], [])
        for start in range(0, max(len(ids), 1), max(size, 1)):
            piece = slice(start, start + size)
            chunk = Framed(
                [*before, *ids[piece], *after],
                [-1] * len(before) + index[piece] + [-1] * len(after),
                [0.0] * len(before) + logs[piece].tolist() + [0.0] * len(after),
                [-1] * len(before) + element[piece] + [-1] * len(after),
            )
            # Each of several chunks is as long as a prompt may be.
            missing = self.limit - len(chunk.ids) if size < len(ids) else 0
            padding = (config.pad_id, -1, PADDING if config.length is None else 0.0, -1)
            columns: Any = zip(framed, chunk, padding, strict=True)
            for column, values, pad in columns:
                column += values + [pad] * missing
        return framed

    def _room(self, null: bool) -> int:
        """Tokens beside BOS and EOS."""
        config = self.tokenizer.config
        return self.limit - config.add_bos - (config.add_eos or null)

    def _over(self, parts: Sequence[Part]) -> int:
        return sum(len(part.ids) for part in parts) - self._room(False)

    def _too_long(self, parts: Sequence[Part]) -> str:
        total = self.limit + self._over(parts)
        pictures = [len(part.ids) for part in parts if not part.is_text]
        what = f"{total - sum(pictures)} text tokens"
        if pictures:
            what += f" and {len(pictures)} image{'s' * (len(pictures) > 1)} of {pictures[0]} tokens"
        return f"a prompt has {what}, {total} in all, more than this model's {self.limit} positions"
