"""The data sets that can be built, by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.parts import Part, find_shards
from mvader_jax.data.emoji.parts import find_emoji_styles
from mvader_jax.data.scenes.parts import find_scenes
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Known:
    """find: the parts of a source; filters: those of a build that names none; source: what it expects;
    options: what else `find` takes, by name."""

    find: Callable[..., list[Part]]
    filters: FilterConfig
    source: str
    description: str
    options: tuple[str, ...] = ()


#: Scenes of one build: the keys of all are held in memory.
_MOST_SCENES = 10_000_000


def _count(source: str) -> list[Part]:
    if not (source.isascii() and source.isdigit() and len(source) < 12 and 1 <= int(source) <= _MOST_SCENES):
        raise UserError(
            f"the source of scenes is {source[:40]!r}; expected their number, 1 to {_MOST_SCENES}, as in 20000"
        )
    return find_scenes(int(source))


KNOWN: dict[str, Known] = {
    "laion_aesthetics": Known(
        find_shards,
        FilterConfig.paper(),
        "img2dataset's output folder",
        "Captioned pictures of LAION, filtered as in the paper: aesthetic score, size, watermark.",
    ),
    "image_captions": Known(
        find_captions,
        FilterConfig(),
        "a folder of pictures and .txt, a CSV or JSONL, or COCO's caption annotations",
        "Captioned pictures from files.",
        ("pictures",),
    ),
    "emoji_styles": Known(
        find_emoji_styles,
        FilterConfig(),
        "a folder of npm packages (docs/data.md)",
        "Emoji in the styles of several sets; every record says which, and its licence.",
        ("size", "styles"),
    ),
    "scenes": Known(
        _count,
        FilterConfig(),
        "their number",
        "The synthetic captioned world: one or two objects over a background.",
    ),
}


def known(name: str) -> Known:
    """Raises UserError for a name that is not in the catalogue."""
    if name not in KNOWN:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]


def find_parts(name: str, source: str | os.PathLike[str], **options: Any) -> list[Part]:
    """The parts of a source of the data set `name`.

    options: what that data set takes beside its source (`Known.options`); None is left out.
    Raises UserError for a source of another kind, and for an option of another data set.
    """
    given = {option: value for option, value in options.items() if value is not None}
    chosen = known(name)
    for option in given.keys() - set(chosen.options):
        takers = ", ".join(other for other, one in KNOWN.items() if option in one.options)
        raise UserError(f"{name} takes no {option}; {takers} does")
    return chosen.find(os.fspath(source), **given)
