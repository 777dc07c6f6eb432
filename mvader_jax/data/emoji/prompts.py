"""Interleaved prompts made of emoji, with the picture that answers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from mvader_jax.data.emoji.words import (
    Language,
    change_phrase,
    ground_phrase,
    joined,
    pick,
    style_phrase,
)
from mvader_jax.data.emoji.world import GROUNDS, Pair, Sight, World
from mvader_jax.data.order import DamagedRecord, Record
from mvader_jax.data.scenes.world import Split
from mvader_jax.prompt.elements import Image, Prompt, Text

Kind = Literal["style", "element", "sequence", "both", "ground"]
#: Each as often as the others.
KINDS: tuple[Kind, ...] = ("style", "element", "sequence", "both", "ground")


@dataclasses.dataclass(frozen=True)
class EmojiTask:
    """An interleaved prompt in terms of the world: words and sights in order, and the sight that answers it."""

    kind: str
    elements: tuple[Sight | str, ...]
    target: Sight


class Tasks:
    """Every task of a split: what is asked of is fixed by its kind and number, wording and order are drawn.

    In the training split neither target nor pictures are unseen pairs. In the validation split every target is one,
    and pictures are others of the world.
    """

    def __init__(self, world: World, split: Split, languages: Sequence[Language]) -> None:
        self.world, self.split, self.languages = world, split, tuple(languages)
        targets = world.of_split(split)
        known = set(world.pairs if split == "validation" else targets)
        self._targets = targets
        self._shown = {
            pair: [
                Pair(pair.code, style)
                for style in world.styles
                if style != pair.style and Pair(pair.code, style) in known
            ]
            for pair in targets
        }
        found: dict[str, list[Any]] = {
            "style": [(shown, pair) for pair, others in self._shown.items() for shown in others],
            "element": [
                (Pair(other, pair.style), pair, own)
                for pair in targets
                for other, _ in world.relatives(pair.code)
                for own in world.relations[pair.code]
                if Pair(other, pair.style) in known
                and change_phrase(own.kind, own.value, "en")
                and any(
                    (theirs.kind, theirs.family) == (own.kind, own.family) and theirs.value != own.value
                    for theirs in world.relations[other]
                )
            ],
            "sequence": [
                (tuple(Pair(part, pair.style) for part in world.sequences[pair.code]), pair)
                for pair in targets
                if pair.code in world.sequences
                and known.issuperset(Pair(part, pair.style) for part in world.sequences[pair.code])
            ],
            "both": targets,
            "ground": targets,
        }
        #: Kinds that the world has any of.
        self.kinds = tuple(kind for kind, all_of in found.items() if all_of)
        self._found = found
        self._make: dict[str, Callable[[int, np.random.Generator], EmojiTask]] = {
            "style": self._style,
            "element": self._element,
            "sequence": self._sequence,
            "both": self._both,
            "ground": self._ground,
        }

    def count(self, kind: str) -> int:
        return len(self._found[kind])

    def entries(self, kind: str) -> Sequence[Any]:
        """What its tasks are made of. element: (shown, target, the target's relation); sequence: (parts, target)."""
        return tuple(self._found[kind])

    def __len__(self) -> int:
        return len(self._targets)

    def task(self, kind: str, number: int, rng: np.random.Generator) -> EmojiTask:
        """Task `number` of a kind, worded by `rng`."""
        return self._make[kind](number % self.count(kind), rng)

    def _language(self, rng: np.random.Generator) -> Language:
        return self.languages[int(rng.integers(len(self.languages)))]

    def _style(self, number: int, rng: np.random.Generator) -> EmojiTask:
        shown, target = self._found["style"][number]
        words = style_phrase(target.style, self._language(rng), rng)
        return EmojiTask("style", _ordered((words, Sight((shown,))), rng), Sight((target,)))

    def _element(self, number: int, rng: np.random.Generator) -> EmojiTask:
        shown, target, relation = self._found["element"][number]
        words = change_phrase(relation.kind, relation.value, self._language(rng))
        assert words is not None
        return EmojiTask("element", _ordered((words, Sight((shown,))), rng), Sight((target,)))

    def _sequence(self, number: int, rng: np.random.Generator) -> EmojiTask:
        parts, target = self._found["sequence"][number]
        elements: list[Sight | str] = [Sight((part,)) for part in parts]
        if rng.random() < 0.3:  # one of the two in words
            which = int(rng.integers(2))
            elements[which] = self.world.subjects[parts[which].code].names[self._language(rng)]
        return EmojiTask("sequence", tuple(elements), Sight((target,)))

    def _both(self, number: int, rng: np.random.Generator) -> EmojiTask:
        first, second = self._targets[number], self._targets[int(rng.integers(len(self._targets)))]
        if rng.random() < 0.2:
            language = self._language(rng)
            said = [
                f"{self.world.subjects[pair.code].names[language]} {style_phrase(pair.style, language, rng)}"
                for pair in (first, second)
            ]
            return EmojiTask("both", (joined(said, language),), Sight((first, second)))
        return EmojiTask("both", (Sight((first,)), Sight((second,))), Sight((first, second)))

    def _ground(self, number: int, rng: np.random.Generator) -> EmojiTask:
        pair = self._targets[number]
        color = pick(tuple(GROUNDS), rng)
        if rng.random() < 0.5:
            said: Sight | str = ground_phrase(color, self._language(rng))
            return EmojiTask("ground", _ordered((said, Sight((pair,))), rng), Sight((pair,), color))
        other = self._targets[int(rng.integers(len(self._targets)))]
        return EmojiTask("ground", (Sight((pair,)), Sight((other,), color)), Sight((pair,), color))


class EmojiInterleaved:
    """{"prompt": Prompt, "image": uint8 [size, size, 3]} of tasks.

    Their kinds are drawn alike, one that is named twice twice as often; those that the world has none of are left out.
    """

    def __init__(self, tasks: Tasks, seed: int, size: int, kinds: Sequence[Kind] = KINDS) -> None:
        self._tasks, self._seed, self._size = tasks, seed, size
        self._kinds = tuple(kind for kind in kinds if kind in tasks.kinds)

    def __len__(self) -> int:
        return len(self._tasks)

    def record(self, index: int, rng: np.random.Generator) -> Record:
        if not self._kinds:
            raise DamagedRecord("the world has no pictures to ask about")
        kind = pick(self._kinds, rng)
        task = self._tasks.task(kind, int(rng.integers(self._tasks.count(kind))), rng)
        return {
            "prompt": prompt_of(self._tasks.world, task.elements, self._size),
            "image": self._tasks.world.render(task.target, self._size),
        }

    def where(self, index: int) -> str:
        return f"emoji task {index} of the {self._tasks.split} split"


def prompt_of(world: World, elements: Sequence[Sight | str], size: int) -> Prompt:
    """Words and sights as a prompt of texts and pictures."""
    return Prompt(
        tuple(Text(one) if isinstance(one, str) else Image(world.render(one, size)) for one in elements)
    )


def _ordered(elements: tuple[Any, Any], rng: np.random.Generator) -> tuple[Any, ...]:
    return elements if rng.random() < 0.5 else elements[::-1]
