"""The world of a built set: its subjects, who is held out, and pictures of one or two of them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.packages import Subject
from mvader_jax.data.emoji.relations import TONES, Relation, order, unseen_pair, unseen_subject
from mvader_jax.data.scenes.world import Split
from mvader_jax.errors import UserError

#: Colours behind a subject beside white, which says nothing.
GROUNDS = {
    "red": (232, 96, 92),
    "yellow": (248, 214, 92),
    "green": (118, 198, 122),
    "blue": (108, 160, 236),
    "purple": (178, 132, 220),
    "grey": (168, 168, 168),
}


class Built(Protocol):
    """A built set, as the source opens it (`data/sources/stored.py`)."""

    path: str

    def column(self, name: str) -> list[bytes]: ...

    def record(self, index: int, rng: np.random.Generator) -> dict[str, Any]: ...


class Pair(NamedTuple):
    """A subject in a style: one picture of the set."""

    code: str
    style: str

    @property
    def unseen(self) -> bool:
        """Whether no stage of training sees it."""
        return unseen_subject(self.code) or unseen_pair(self.code, self.style)


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a picture shows: one subject, or two at half the size, the first on the left; on white or a colour."""

    pairs: tuple[Pair, ...]
    ground: str = "white"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of a set's subjects make a world.

    subjects: how many, those of most styles first, and then by `relations.order`; 0 for all. styles: which of the
    set's; least_styles: in how many of them a subject is drawn at least. tones: skin tones that are subjects beside
    those that have none.
    """

    subjects: int = 0
    styles: tuple[str, ...] = ()
    least_styles: int = 1
    tones: tuple[str, ...] = ()


class World:
    """A set that `mvader data build emoji_styles` wrote."""

    def __init__(self, stored: Built, choice: Choice) -> None:
        """Raises UserError where the set is of something else, nothing of it is chosen, or more than it has."""
        self._stored = stored
        self._records: dict[Pair, int] = {}
        self._decoded: dict[tuple[Pair, int], np.ndarray] = {}
        about: dict[str, dict[str, Any]] = {}
        left_out = {point for point, tone in TONES.items() if tone not in choice.tones}
        for index, text in enumerate(stored.column("details")):
            details = _details(text, stored.path)
            pair = Pair(details["subject"], details["style"])
            if pair.style in choice.styles and not left_out.intersection(pair.code.split("-")):
                self._records[pair] = index
                about[pair.code] = details
        self.styles = choice.styles
        drawn = collections.Counter(pair.code for pair in self._records)
        codes = sorted(
            (code for code in about if drawn[code] >= choice.least_styles),
            key=lambda code: (-drawn[code], *order(code)),
        )
        if not codes:
            raise UserError(
                f"the set at {stored.path!r} has no subject in {choice.least_styles} of {', '.join(choice.styles)}"
            )
        if choice.subjects > len(codes):
            raise UserError(
                f"subjects is {choice.subjects}, but the set at {stored.path!r} has {len(codes)} in "
                f"{choice.least_styles} of {', '.join(choice.styles)}"
            )
        codes = codes[: choice.subjects or len(codes)]
        kept = set(codes)
        self._records = {pair: index for pair, index in self._records.items() if pair.code in kept}
        self.subjects: dict[str, Subject] = {code: _subject(about[code]) for code in codes}
        self.relations = {
            code: tuple(Relation(*relation) for relation in about[code]["relations"]) for code in codes
        }
        #: {a sequence: the two subjects it joins}.
        self.sequences = {
            code: tuple(about[code]["parts"])
            for code in codes
            if len(about[code]["parts"]) == 2 and kept.issuperset(about[code]["parts"])
        }

    @property
    def pairs(self) -> Sequence[Pair]:
        """Every picture, in one order for ever."""
        return sorted(self._records, key=lambda pair: (order(pair.code), self.styles.index(pair.style)))

    def of_split(self, split: Split) -> list[Pair]:
        """Those that training sees, or those that it never does."""
        return [pair for pair in self.pairs if pair.unseen == (split == "validation")]

    def has(self, code: str, style: str) -> bool:
        return Pair(code, style) in self._records

    def relatives(self, code: str) -> list[tuple[str, Relation]]:
        """(another subject, what it has in place of this one's) of all that differ in one respect alone."""
        return [
            (other, relation)
            for own in self.relations[code]
            for other, relation in self._families[own.kind, own.family]
            if other != code and relation.value != own.value
        ]

    @functools.cached_property
    def _families(self) -> Mapping[tuple[str, str], list[tuple[str, Relation]]]:
        found: dict[tuple[str, str], list[tuple[str, Relation]]] = collections.defaultdict(list)
        for code, relations in self.relations.items():
            for relation in relations:
                found[relation.kind, relation.family].append((code, relation))
        return found

    def picture(self, pair: Pair, size: int) -> UInt8[np.ndarray, "{size} {size} 4"]:
        """The subject with its alpha, read-only: decoded once, for a world of 64 x 64 is 200 MB at most."""
        found = self._decoded.get((pair, size))
        if found is None:
            found = self._decoded[pair, size] = self._decode(pair, size)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": {}}

    def _decode(self, pair: Pair, size: int) -> UInt8[np.ndarray, "{size} {size} 4"]:
        import PIL.Image

        data = self._stored.record(self._records[pair], np.random.default_rng(0))["image"]
        image = PIL.Image.open(io.BytesIO(data)).convert("RGBA")
        if image.size != (size, size):
            # Premultiplied: the colour under what is transparent does not leak into the edges.
            small = image.convert("RGBa").resize((size, size), PIL.Image.Resampling.LANCZOS)
            image = small.convert("RGBA")
        return np.asarray(image)

    def render(self, sight: Sight, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """The picture of what is seen."""
        canvas = np.empty((size, size, 3), np.uint8)
        canvas[:] = _color(sight.ground)
        side = size // len(sight.pairs)
        top = (size - side) // 2
        for number, pair in enumerate(sight.pairs):
            place = canvas[top : top + side, number * side : (number + 1) * side]
            place[:] = over(self.picture(pair, side), sight.ground)
        return canvas


def over(picture: UInt8[np.ndarray, "*N S S 4"], ground: str) -> UInt8[np.ndarray, "*N S S 3"]:
    """What is seen of a picture with its alpha on a ground."""
    drawn, below = picture.astype(np.float32), np.array(_color(ground), np.float32)
    return np.rint(below + drawn[..., 3:] / 255 * (drawn[..., :3] - below)).astype(np.uint8)


def _color(ground: str) -> tuple[int, int, int]:
    return GROUNDS.get(ground, (255, 255, 255))


def _details(text: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        return {**found, "subject": str(found["subject"]), "style": str(found["style"])}
    except (ValueError, TypeError, LookupError):
        raise UserError(
            f"the records of {path!r} are no emoji: `mvader data build emoji_styles` writes such"
        ) from None


def _subject(details: Mapping[str, Any]) -> Subject:
    tags = {language: tuple(tags) for language, tags in details["tags"].items()}
    return Subject(details["subject"], details["names"], tags, details["group"])
