"""Emoji in many styles as a source of records: pictures that others drew, captions worded as they are read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from mvader_jax.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt, Share
from mvader_jax.data.emoji.prompts import KINDS, EmojiInterleaved, Kind, Tasks
from mvader_jax.data.emoji.sets import STYLES
from mvader_jax.data.emoji.words import (
    Language,
    ground_phrase,
    joined,
    name_or_tags,
    pick,
    style_phrase,
    with_style,
)
from mvader_jax.data.emoji.world import GROUNDS, Choice, Pair, Sight, World
from mvader_jax.data.order import Dataset, Record
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.base import Source
from mvader_jax.data.sources.stored import Stored, digest
from mvader_jax.errors import UserError

Tone = Literal["light", "medium-light", "medium", "medium-dark", "dark"]
_LANGUAGES: tuple[Language, ...] = ("en", "de", "fr", "es", "it")


@dataclasses.dataclass(frozen=True)
class Emoji(Source):
    """A set that `mvader data build emoji_styles` wrote: subjects in styles, some pairs of which are never seen.

    Raises UserError without a kind of prompt.
    """

    #: Its folder.
    path: str = "data/emoji"
    #: How many subjects; 0: all.
    subjects: NonNegativeInt = 0
    #: Which of the set's styles.
    styles: tuple[str, ...] = STYLES
    #: In how many of them a subject is drawn at least.
    least_styles: PositiveInt = 5
    #: Skin tones that are subjects beside those that have none.
    tones: tuple[Tone, ...] = ("light", "dark")
    #: Of the captions.
    languages: tuple[Language, ...] = _LANGUAGES
    #: Probability that a caption leaves its style out, or tells tags in place of the name; half of it that nothing but
    #: the style is told.
    omit: Share = 0.0
    #: Probability that a second caption of the same picture follows, as in parallel corpora.
    parallel: Share = 0.0
    #: Pictures of two subjects side by side, for each of one on white.
    couples: NonNegativeFloat = 0.0
    #: Pictures of one subject on a colour, for each of one on white.
    grounds: NonNegativeFloat = 0.0
    #: Kinds of the interleaved prompts (data/emoji/prompts.py), drawn alike; one that is named twice comes twice as
    #: often.
    prompts: tuple[Kind, ...] = KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise UserError(
                "source.prompts names no kind of interleaved prompt; leave it out for the default"
            )

    def world(self) -> World:
        """Raises UserError where there is no such set."""
        choice = Choice(self.subjects, self.styles, self.least_styles, self.tones)
        return _world(self.path, digest(self.path), choice)

    def pictures(self, split: Split, seed: int, size: int) -> Sequence[EmojiPictures]:
        return [EmojiPictures(self, split, seed, size)]

    def pairs(self, split: Split, seed: int, size: int, pictures: bool = False) -> Sequence[Dataset]:
        return [EmojiPairs(self, split, seed, size)]

    def interleaved(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        return [EmojiInterleaved(Tasks(self.world(), split, self.languages), seed, size, self.prompts)]

    def captions(self, pictures: EmojiPictures, index: int) -> list[str]:
        return []

    def wording(self, split: Split, seed: int, size: int) -> Callable[[int, np.random.Generator], str] | None:
        return EmojiPictures(self, split, seed, size).caption

    def origin(self, seed: int, size: int) -> dict[str, Any]:
        shaping = ("subjects", "styles", "least_styles", "tones", "couples", "grounds")
        settings = {name: getattr(self, name) for name in shaping}
        return {
            "source": self.kind,
            "digest": digest(self.path),
            "seed": seed,
            "image_size": size,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        }


@functools.lru_cache(maxsize=4)
def _world(path: str, known: str | None, choice: Choice) -> World:
    return World(Stored(path, None), choice)


class EmojiPictures:
    """{"image": uint8 [size, size, 3], "caption": str}; the wording is drawn anew each time.

    First every pair of the split on white, then couples, then subjects on colours, drawn once by the seed.
    """

    def __init__(self, emoji: Emoji, split: Split, seed: int, size: int) -> None:
        """Raises UserError where the split has no pictures."""
        self._emoji, self._split, self._seed, self._size = emoji, split, seed, size
        self.world = emoji.world()
        self.pairs = self.world.of_split(split)
        if not self.pairs:
            raise UserError(
                f"the {split} split of {emoji.path!r} has no pictures of {len(self.world.subjects)} subjects; take more"
            )
        self._couples = round(len(self.pairs) * emoji.couples)
        self._grounds = round(len(self.pairs) * emoji.grounds)

    def __len__(self) -> int:
        return len(self.pairs) + self._couples + self._grounds

    def sight(self, index: int) -> Sight:
        """What picture `index` shows: the same for ever."""
        extra = index - len(self.pairs)
        if extra < 0:
            return Sight((self.pairs[index],))
        rng = np.random.default_rng([self._seed, index, self._split == "validation"])
        first, second = (self.pairs[int(i)] for i in rng.integers(len(self.pairs), size=2))
        if extra >= self._couples:
            return Sight((first,), pick(tuple(GROUNDS), rng))
        alike = Pair(second.code, first.style)
        # Half of them of one style, where the split has it.
        if rng.random() < 0.5 and self.world.has(*alike) and alike.unseen == second.unseen:
            second = alike
        return Sight((first, second))

    def record(self, index: int, rng: np.random.Generator) -> Record:
        return {"image": self.picture(index), "caption": self.caption(index, rng)}

    def picture(self, index: int) -> UInt8[np.ndarray, "{self._size} {self._size} 3"]:
        return self.world.render(self.sight(index), self._size)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """A caption of picture `index`, worded by `rng`; two in a row where `parallel` says so."""
        sight, emoji = self.sight(index), self._emoji

        def told() -> str:
            return self.tell(sight, rng, emoji.omit if rng.random() < 0.5 else 0.0)

        first = told()
        return f"{first}; {told()}" if emoji.parallel and rng.random() < emoji.parallel else first

    def tell(self, sight: Sight, rng: np.random.Generator, omit: float = 0.0) -> str:
        """A caption in a language drawn anew. omit: 0 tells the name, and the style of each subject."""
        language = self._emoji.languages[int(rng.integers(len(self._emoji.languages)))]
        subjects = [self.world.subjects[pair.code] for pair in sight.pairs]
        names = [name_or_tags(one.names, one.tags, language, rng, omit) for one in subjects]
        phrases = [style_phrase(pair.style, language, rng) for pair in sight.pairs]
        if len(names) == 1 and sight.ground == "white" and omit and rng.random() < omit / 2:
            return phrases[0]
        styled = not omit or rng.random() >= omit
        if len({pair.style for pair in sight.pairs}) == 1:
            text = joined(names, language)
            text = with_style(text, phrases[0], rng) if styled else text
        else:
            each = [
                f"{name} {phrase}" if styled else name for name, phrase in zip(names, phrases, strict=True)
            ]
            text = joined(each, language)
        return text if sight.ground == "white" else f"{text} {ground_phrase(sight.ground, language)}"

    def where(self, index: int) -> str:
        return f"emoji picture {index} of the {self._split} split"


class EmojiPairs(EmojiPictures):
    """{"image", "query", "positive", "negative"}: two captions of a picture, and one of the same subject in
    another style or of another subject in the same."""

    def record(self, index: int, rng: np.random.Generator) -> Record:
        sight = self.sight(index)
        query, positive = self.tell(sight, rng), self.tell(sight, rng)
        first = sight.pairs[0]
        others = [style for style in self.world.styles if style != first.style]
        if others and rng.random() < 0.5:
            other = Pair(first.code, pick(others, rng))
        else:
            codes = list(self.world.subjects)
            step = 1 + int(rng.integers(max(len(codes) - 1, 1)))
            other = Pair(codes[(codes.index(first.code) + step) % len(codes)], first.style)
        wrong = dataclasses.replace(sight, pairs=(other, *sight.pairs[1:]))
        return {
            "image": self.picture(index),
            "query": query,
            "positive": positive,
            "negative": self.tell(wrong, rng),
        }
