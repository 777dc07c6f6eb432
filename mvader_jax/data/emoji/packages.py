"""Emoji sets as their npm packages hold them: which subjects a set draws, and each as a picture with alpha."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from mvader_jax.data.emoji.relations import TONES, code_of
from mvader_jax.data.emoji.sets import NAMES_PACKAGE, NAMES_VERSION, SETS, EmojiSet, install_command
from mvader_jax.errors import UserError

#: Languages of names and tags: the paper's five.
LANGUAGES = ("en", "de", "fr", "es", "it")
#: Groups of emojibase that show no subject: skin tones and hair on their own.
_NO_SUBJECTS = (2,)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is drawn. names, tags: by language; group: as in "people-body"."""

    code: str
    names: Mapping[str, str]
    tags: Mapping[str, tuple[str, ...]]
    group: str


class Packages:
    """Packages unpacked in a folder, as npm installs them (`node_modules/NAME`) or side by side (`NAME`)."""

    def __init__(self, folder: str, styles: Iterable[str]) -> None:
        """Raises UserError where a package is missing, naming the command that fetches it."""
        root = pathlib.Path(folder)
        self.root = root / "node_modules" if (root / "node_modules").is_dir() else root
        self.styles = tuple(styles)
        named = [SETS[style].package for style in self.styles]
        missing = [name for name in (NAMES_PACKAGE, *named) if not (self.root / name).is_dir()]
        if missing:
            raise UserError(
                f"{folder!r} lacks the npm package{'s' * (len(missing) > 1)} {', '.join(missing)}; fetch them by: "
                f"{install_command('FOLDER')}"
            )

    def problems(self) -> list[str]:
        """Packages of other versions than those that the benchmark is of, in words."""
        wanted = {NAMES_PACKAGE: NAMES_VERSION}
        wanted |= {SETS[style].package: SETS[style].version for style in self.styles}
        found = {name: _json(self.root / name / "package.json").get("version") for name in wanted}
        return [
            f"{name} is of version {found[name]}; prompts and judgements of others are of {version}"
            for name, version in wanted.items()
            if found[name] != version
        ]

    def subjects(self) -> dict[str, Subject]:
        """Every emoji that has a name, by its code; those of two skin tones are left out."""
        folder = self.root / NAMES_PACKAGE
        groups = _json(folder / "meta" / "groups.json")["groups"]
        told: dict[str, dict[str, Any]] = {}
        for language in LANGUAGES:
            for entry in _json(folder / language / "data.json"):
                if entry.get("group") is None or entry["group"] in _NO_SUBJECTS:
                    continue
                for one in (entry, *entry.get("skins", ())):
                    about = told.setdefault(code_of(one["hexcode"]), {"names": {}, "tags": {}})
                    about["names"][language] = " ".join(one["label"].lower().split())
                    about["tags"][language] = tuple(tag.lower() for tag in entry.get("tags", ()))
                    about["group"] = groups[str(entry["group"])]
        return {
            code: Subject(code, **about)
            for code, about in told.items()
            if sum(point in TONES for point in code.split("-")) <= 1 and set(about["names"]) == set(LANGUAGES)
        }

    def icons(self, style: str, subjects: Iterable[Subject]) -> dict[str, str]:
        """{code: where the set keeps its picture: an icon's name, or a file's} of the subjects that a set draws.

        Joined by code points; by name where the set says none.
        """
        if not SETS[style].drawings:
            return {code_of(path.stem): path.name for path in sorted(self._folder(style).glob("*.webp"))}
        chars = self._chars(style)
        if chars:
            return {code_of(points): name for points, name in chars.items()}
        known = self._names(style)
        others = [self._chars(other) for other in SETS if (self.root / SETS[other].package).is_dir()]
        names: dict[str, list[str]] = {}
        for other in others:
            for points, name in other.items():
                names.setdefault(code_of(points), []).append(name)
        found = {}
        for subject in subjects:
            own = [*names.get(subject.code, ()), slug(subject.names["en"])]
            icon = next((name for name in own if name in known), None)
            if icon:
                found[subject.code] = icon
        return found

    def files(self, style: str) -> list[pathlib.Path]:
        """What a build of the style depends on, beside the names."""
        one = SETS[style]
        return [self.root / one.package / ("icons.json" if one.drawings else "package.json")]

    def drawing(self, style: str, icon: str, size: int) -> bytes:
        """The picture as PNG with alpha, size x size, its own canvas in the middle.

        Raises UserError where the set's file of it cannot be read or drawn.
        """
        if not SETS[style].drawings:
            return _resized(self._folder(style) / icon, size)
        return _rendered(_svg(self._icons(style), icon), size)

    def _folder(self, style: str) -> pathlib.Path:
        return self.root / SETS[style].package / "assets"

    def _chars(self, style: str) -> dict[str, str]:
        path = self.root / SETS[style].package / "chars.json"
        return _json(path) if SETS[style].drawings and path.is_file() else {}

    def _icons(self, style: str) -> dict[str, Any]:
        return _icons(self.root / SETS[style].package / "icons.json")

    def _names(self, style: str) -> set[str]:
        icons = self._icons(style)
        return {*icons["icons"], *icons.get("aliases", {})}


def licence_of(style: str) -> EmojiSet:
    """The set of a style. Raises UserError for an unknown one."""
    if style not in SETS:
        raise UserError(f"unknown style {style!r}; accepted: {', '.join(SETS)}")
    return SETS[style]


def slug(name: str) -> str:
    """A name as Iconify writes it: "woman: red hair" is "woman-red-hair"."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").replace("&", "and")).strip("-")


def _svg(icons: Mapping[str, Any], name: str) -> tuple[str, float, float]:
    """(an SVG document, its width and height) of an icon or an alias of one."""
    entry = icons["icons"].get(name)
    if entry is None and name in icons.get("aliases", {}):
        alias = icons["aliases"][name]
        entry = {**icons["icons"].get(alias["parent"], {}), **alias}
    if not entry or "body" not in entry:
        raise UserError(f"the set has no icon {name!r}")
    width, height = (float(entry.get(side, icons.get(side, 16))) for side in ("width", "height"))
    left, top = entry.get("left", 0), entry.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{entry["body"]}</svg>'
    )
    return svg, width, height


def _rendered(drawing: tuple[str, float, float], size: int) -> bytes:
    import PIL.Image

    try:
        import resvg_py
    except ImportError:
        raise UserError("drawing SVG needs the data extra: pip install 'mvader-jax[data]'") from None
    svg, width, height = drawing
    scale = size / max(width, height)
    try:
        data = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=max(round(width * scale), 1),
            height=max(round(height * scale), 1),
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise UserError(f"it cannot be drawn: {error}") from None
    return _centred(PIL.Image.open(io.BytesIO(data)).convert("RGBA"), size)


def _resized(path: pathlib.Path, size: int) -> bytes:
    import PIL.Image

    try:
        picture = PIL.Image.open(path).convert("RGBA")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    scale = size / max(picture.size)
    sides = [max(round(side * scale), 1) for side in picture.size]
    # Premultiplied: the colour under what is transparent does not leak into the edges.
    return _centred(picture.convert("RGBa").resize(sides, PIL.Image.Resampling.LANCZOS).convert("RGBA"), size)


def _centred(picture: Any, size: int) -> bytes:
    import PIL.Image

    canvas = PIL.Image.new("RGBA", (size, size), (255, 255, 255, 0))
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=False)
    return file.getvalue()


@functools.lru_cache(maxsize=2)
def _icons(path: pathlib.Path) -> dict[str, Any]:
    return _json(path)


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON: {error}") from None
