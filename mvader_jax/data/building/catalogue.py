"""The data sets that can be built, by name."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

from mvader_jax.data.building.columns import NONE
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.parts import Part
from mvader_jax.data.building.plan import WORK
from mvader_jax.data.building.sharded import find_downloaded, find_hub
from mvader_jax.data.emoji.parts import find_emoji_styles
from mvader_jax.data.scenes.parts import find_scenes
from mvader_jax.errors import UserError
from mvader_jax.storage import hub
from mvader_jax.storage.atomic import local


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
        find_downloaded,
        FilterConfig.paper(),
        "img2dataset's output folder",
        "Captioned pictures of LAION, filtered as in the paper: aesthetic score, size, watermark.",
        ("columns",),
    ),
    "image_captions": Known(
        find_captions,
        FilterConfig(),
        "a folder of pictures and .txt, a CSV or JSONL, COCO's caption annotations, parquet files or tars",
        "Captioned pictures from files.",
        ("pictures", "columns"),
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


def find_parts(
    name: str, source: str | os.PathLike[str], out: str | os.PathLike[str] = "", **options: Any
) -> list[Part]:
    """The parts of a source of the data set `name`.

    out: the folder of the build; what comes from the hub lies there while it is read. options: what that data set takes
    beside its source (`Known.options`); None is left out.
    Raises UserError for a source of another kind, and for an option of another data set.
    """
    given = {option: value for option, value in options.items() if value is not None}
    chosen, place = known(name), os.fspath(source)
    for option in given.keys() - set(chosen.options):
        takers = " and ".join(other for other, one in KNOWN.items() if option in one.options)
        raise UserError(f"{name} takes no {option}; accepted for {takers}")
    if not hub.is_address(place):
        return chosen.find(place if name == "scenes" else local(place), **given)
    if "columns" not in chosen.options:
        raise UserError(f"{name} is not read from the hub; its source is {chosen.source}")
    if "pictures" in given:
        raise UserError(f"--pictures belongs to a file of paths; {place} holds the pictures")
    return find_hub(place, given.get("columns", NONE), pathlib.Path(out) / WORK)
