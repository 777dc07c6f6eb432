"""Emoji sets as files, like any data set: a record a subject and style, with all that is known of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mvader_jax.data.building.admit import Rejected, Sample
from mvader_jax.data.building.parts import Part
from mvader_jax.data.emoji.packages import Packages, Subject, licence_of
from mvader_jax.data.emoji.relations import parts, relations
from mvader_jax.data.emoji.sets import SETS, STYLES
from mvader_jax.errors import UserError

#: Pixels of a side; what a build of 64 is judged at.
SIZE, LARGEST = 64, 1024
PART_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One picture to draw. icon: where its set keeps it; details: what its record says of it, as JSON."""

    code: str
    icon: str
    names: tuple[str, ...]
    details: str


@dataclasses.dataclass(frozen=True)
class EmojiPart:
    """Subjects of one style."""

    folder: str
    style: str
    number: int
    size: int
    drawn: tuple[Drawn, ...]
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.style}-{self.number:05d}"

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        problems += self.problems
        packages = Packages(self.folder, [self.style])
        for key, one in zip(self.key_list(), self.drawn, strict=True):
            metadata = {"caption": list(one.names), "details": one.details}
            yield Sample(key, self._picture(packages, one.icon), None, metadata)

    def _picture(self, packages: Packages, icon: str) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                return packages.drawing(self.style, icon, self.size)
            except UserError as error:
                raise Rejected(f"picture cannot be drawn: {error}") from None

        return read

    def key_list(self) -> list[str]:
        return [f"{one.code}/{self.style}" for one in self.drawn]

    def files(self) -> Iterable[pathlib.Path | str]:
        drawings = Packages(self.folder, [self.style]).files(self.style)
        return [*drawings, f"{self.size} pixels", *(repr(one) for one in self.drawn)]

    def columns(self) -> set[str] | None:
        return {"caption"}


def find_emoji_styles(
    source: str | os.PathLike[str], size: int = SIZE, styles: Sequence[str] = STYLES
) -> list[Part]:
    """The parts of a folder of npm packages. size: sides of the pictures in pixels; styles: which sets.

    Raises UserError for an unknown style or another size, and where a package is missing.
    """
    folder = os.fspath(source)
    if not 1 <= size <= LARGEST:
        raise UserError(f"size is {size}; accepted are 1 to {LARGEST} pixels")
    chosen = list(dict.fromkeys(styles))
    for style in chosen:
        licence_of(style)
    packages = Packages(folder, chosen)
    subjects = packages.subjects()
    problems = tuple(packages.problems())
    found: list[Part] = []
    for style in chosen:
        icons = packages.icons(style, subjects.values())
        drawn = [
            Drawn(code, icons[code], tuple(dict.fromkeys(one.names.values())), details(one, style))
            for code, one in sorted(subjects.items())
            if code in icons
        ]
        for number, at in enumerate(range(0, len(drawn), PART_SIZE)):
            part = tuple(drawn[at : at + PART_SIZE])
            found.append(EmojiPart(folder, style, number, size, part, problems))
            problems = ()
    if not found:
        raise UserError(f"the packages in {folder!r} draw no subject that has a name")
    return found


def details(subject: Subject, style: str) -> str:
    """JSON of a record: subject, style, names and tags by language, group, relations, parts, licence."""
    about: dict[str, Any] = {
        "subject": subject.code,
        "style": style,
        "names": dict(subject.names),
        "tags": {language: list(tags) for language, tags in subject.tags.items()},
        "group": subject.group,
        "relations": [dataclasses.astuple(relation) for relation in relations(subject.code)],
        "parts": list(parts(subject.code)),
        "licence": SETS[style].licence,
        "credit": SETS[style].credit,
    }
    return json.dumps(about, ensure_ascii=False)
