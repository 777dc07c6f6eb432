"""The benchmark's prompts: drawn once, the same for everybody who has built the same set.

Words are the first phrase of each style (`STYLE_PHRASES`) and the names of emojibase. Subjects are drawn so that those
of one `root` (a runner of every gender) count as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from mvader_jax.bounds import PositiveInt
from mvader_jax.data.emoji.prompts import Tasks
from mvader_jax.data.emoji.relations import root, unseen_subject
from mvader_jax.data.emoji.words import (
    Language,
    change_phrase,
    ground_phrase,
    joined,
    style_phrase,
    with_style,
)
from mvader_jax.data.emoji.world import GROUNDS, Pair, Sight, World
from mvader_jax.errors import UserError
from mvader_jax.settings import convert

COUNT = 500
_SEED = 20_220
#: The part that asks a bundle's autoencoder alone.
RECONSTRUCTION = "reconstruction"
Drawn = TypeVar("Drawn")


@dataclasses.dataclass(frozen=True)
class BenchTask:
    """id: as in "style-unseen-pair-0007". elements: of the prompt, words and sights in order. target: what is right.
    told: the target in words, name and style, for methods that read no pictures."""

    id: str
    elements: tuple[Sight | str, ...]
    target: Sight
    told: str

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(one for one in self.elements if isinstance(one, str))

    @property
    def shown(self) -> tuple[Sight, ...]:
        return tuple(one for one in self.elements if isinstance(one, Sight))

    def to_json(self) -> dict[str, Any]:
        def plain(sight: Sight) -> dict[str, Any]:
            return {"pairs": [list(pair) for pair in sight.pairs], "ground": sight.ground}

        elements = [one if isinstance(one, str) else plain(one) for one in self.elements]
        return {"id": self.id, "elements": elements, "target": plain(self.target), "told": self.told}


class Benchmark:
    """Every part of the benchmark for a world."""

    def __init__(self, world: World, count: int = COUNT) -> None:
        """Raises UserError for a count that is not positive."""
        self.world, self.count = world, cast(int, convert(PositiveInt, count, "count"))
        self._seen, unseen = world.of_split("train"), world.of_split("validation")
        self._pairs = [pair for pair in unseen if not unseen_subject(pair.code)]
        self._subjects = [pair for pair in unseen if unseen_subject(pair.code)]

    def tasks(self, part: str) -> list[BenchTask]:
        """The prompts of a part; fewer than `count` where the world has no more. Raises UserError for an unknown one."""
        check((part,))
        number, make = PARTS[part]
        made = make(self, np.random.default_rng([_SEED, number]))
        return [
            BenchTask(f"{part}-{number:04d}", elements, target, self.tell(target))
            for number, (elements, target) in enumerate(made)
        ]

    def of(self, parts: Sequence[str]) -> dict[str, list[BenchTask]]:
        """The prompts of each part that has some. Raises UserError as `tasks`, and where none has."""
        check(parts)
        found = {part: tasks for part in parts if (tasks := self.tasks(part))}
        if not found:
            raise UserError(
                f"a world of {len(self.world.subjects)} subjects has no prompts of {', '.join(parts)}"
            )
        return found

    def about(self) -> dict[str, Any]:
        """What tells these numbers from those of other prompts."""
        return {
            "count": self.count,
            "subjects": len(self.world.subjects),
            "pictures of the world": len(self.world.pairs),
            "prompts": self.digest(),
        }

    def digest(self) -> str:
        """What tells all these prompts from those of another set, version or count."""
        lines = [
            json.dumps(task.to_json(), ensure_ascii=False)
            for part in sorted(ASKED)
            for task in self.tasks(part)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def tell(self, sight: Sight, language: Language = "en") -> str:
        """The sight in words."""
        each = [
            with_style(self.world.subjects[pair.code].names[language], style_phrase(pair.style, language))
            for pair in sight.pairs
        ]
        text = joined(each, language)
        return text if sight.ground == "white" else f"{text} {ground_phrase(sight.ground, language)}"

    def _told(self, pairs: Sequence[Pair], rng: np.random.Generator, language: Language = "en") -> list[Any]:
        sights = [Sight((pair,)) for pair in self._spread(pairs, lambda pair: pair.code, rng)]
        return [((self.tell(sight, language),), sight) for sight in sights]

    def _shown(self, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Any]:
        sights = [Sight((pair,)) for pair in self._spread(pairs, lambda pair: pair.code, rng)]
        return [((sight,), sight) for sight in sights]

    def _style(self, targets: Sequence[Pair], rng: np.random.Generator) -> list[Any]:
        """A style in words, and the subject in another, of pictures that are as unseen as they must be."""
        made = []
        for target in self._spread(targets, lambda pair: pair.code, rng):
            others = [Pair(target.code, style) for style in self.world.styles if style != target.style]
            others = [pair for pair in others if self.world.has(*pair)]
            shown = [pair for pair in others if not pair.unseen] or others
            if shown:
                picture = Sight((shown[int(rng.integers(len(shown)))],))
                made.append(((style_phrase(target.style, "en"), picture), Sight((target,))))
        return made

    def _element(self, rng: np.random.Generator) -> list[Any]:
        entries = Tasks(self.world, "validation", ("en",)).entries("element")
        chosen = self._spread(entries, lambda entry: entry[1].code, rng)
        return [
            ((change_phrase(relation.kind, relation.value, "en"), Sight((shown,))), Sight((target,)))
            for shown, target, relation in chosen
        ]

    def _sequence(self, rng: np.random.Generator) -> list[Any]:
        entries = Tasks(self.world, "validation", ("en",)).entries("sequence")
        chosen = self._spread(entries, lambda entry: entry[1].code, rng)
        return [(tuple(Sight((part,)) for part in parts), Sight((target,))) for parts, target in chosen]

    def _both(self, rng: np.random.Generator, turned: bool = False) -> list[Any]:
        first = self._spread(self._seen, lambda pair: pair.code, rng)
        second = self._spread(self._seen, lambda pair: pair.code, rng)
        couples = [(b, a) if turned else (a, b) for a, b in zip(first, second, strict=True)]
        return [(tuple(Sight((pair,)) for pair in couple), Sight(couple)) for couple in couples]

    def _ground(self, rng: np.random.Generator) -> list[Any]:
        first = self._spread(self._seen, lambda pair: pair.code, rng)
        second = self._spread(self._seen, lambda pair: pair.code, rng)
        colors = [tuple(GROUNDS)[int(rng.integers(len(GROUNDS)))] for _ in first]
        return [
            ((Sight((a,)), Sight((b,), color)), Sight((a,), color))
            for a, b, color in zip(first, second, colors, strict=True)
        ]

    def _spread(
        self, entries: Sequence[Drawn], code: Callable[[Drawn], str], rng: np.random.Generator
    ) -> list[Drawn]:
        """`count` of the entries, all where there are fewer: from each root one, then from each another."""
        groups: dict[str, list[Drawn]] = {}
        for entry in entries:
            groups.setdefault(root(code(entry)), []).append(entry)
        shuffled = [[group[i] for i in rng.permutation(len(group))] for group in groups.values()]
        shuffled = [shuffled[i] for i in rng.permutation(len(shuffled))]
        found: list[Drawn] = []
        for turn in range(max(map(len, shuffled), default=0)):
            found += [group[turn] for group in shuffled if turn < len(group)]
            if len(found) >= self.count:
                break
        return found[: self.count]


Make = Callable[[Benchmark, np.random.Generator], list[Any]]
#: What is asked, that of which most is wanted first; `docs/benchmark.md` says it in words. With the number of each
#: one's draw: all languages tell the same pictures, and pairs turned round are the same pairs.
PARTS: Mapping[str, tuple[int, Make]] = {
    RECONSTRUCTION: (18, lambda bench, rng: bench._shown(bench.world.pairs, rng)),
    "told": (0, lambda bench, rng: bench._told(bench._seen, rng)),
    "told-unseen-pair": (5, lambda bench, rng: bench._told(bench._pairs, rng)),
    "shown": (6, lambda bench, rng: bench._shown(bench._seen, rng)),
    "style-unseen-pair": (10, lambda bench, rng: bench._style(bench._pairs, rng)),
    "both": (14, lambda bench, rng: bench._both(rng)),
    "told-de": (0, lambda bench, rng: bench._told(bench._seen, rng, "de")),
    "told-fr": (0, lambda bench, rng: bench._told(bench._seen, rng, "fr")),
    "told-es": (0, lambda bench, rng: bench._told(bench._seen, rng, "es")),
    "told-it": (0, lambda bench, rng: bench._told(bench._seen, rng, "it")),
    "style-unseen-subject": (11, lambda bench, rng: bench._style(bench._subjects, rng)),
    "style": (9, lambda bench, rng: bench._style(bench._seen, rng)),
    "element": (12, lambda bench, rng: bench._element(rng)),
    "sequence": (13, lambda bench, rng: bench._sequence(rng)),
    "order": (14, lambda bench, rng: bench._both(rng, turned=True)),
    "ground": (16, lambda bench, rng: bench._ground(rng)),
    "told-unseen-subject": (17, lambda bench, rng: bench._told(bench._subjects, rng)),
    "shown-unseen-pair": (7, lambda bench, rng: bench._shown(bench._pairs, rng)),
    "shown-unseen-subject": (8, lambda bench, rng: bench._shown(bench._subjects, rng)),
}
#: Those that have prompts.
ASKED = tuple(part for part in PARTS if part != RECONSTRUCTION)


def check(parts: Sequence[str], accepted: Sequence[str] = tuple(PARTS)) -> None:
    """Raises UserError for an unknown part."""
    for name in [name for name in parts if name not in accepted]:
        raise UserError(f"unknown part {name!r}; accepted: {', '.join(accepted)}")
