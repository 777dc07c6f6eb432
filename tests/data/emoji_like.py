"""A folder of npm packages as the emoji sets are laid out: a few drawings of our own, in seven styles."""

import json
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from mvader_jax.data.emoji.packages import LANGUAGES, slug
from mvader_jax.data.emoji.sets import NAMES_PACKAGE, NAMES_VERSION, SETS

#: Code points as emojibase writes them: (English name, a shape, a colour).
SUBJECTS = {
    "1F34E": ("red apple", "circle", "red"),
    "1F34F": ("green apple", "circle", "green"),
    "2764-FE0F": ("red heart", "heart", "red"),
    "1F499": ("blue heart", "heart", "blue"),
    "1F680": ("rocket", "triangle", "grey"),
    "1F469": ("woman", "oval", "gold"),
    "1F468": ("man", "tall", "gold"),
    "1F469-200D-1F680": ("woman astronaut", "oval", "silver"),
    "1F468-200D-1F680": ("man astronaut", "tall", "silver"),
    "1F44B": ("waving hand", "square", "gold"),
    "1F43B": ("bear", "circle", "brown"),
    "2744-FE0F": ("snowflake", "star", "lightblue"),
    "1F43B-200D-2744-FE0F": ("polar bear", "circle", "lightgrey"),
    "23-FE0F-20E3": ("keycap: #", "square", "navy"),
    "1F534": ("red circle", "circle", "red"),
    "1F370": ("shortcake", "triangle", "pink"),
}
TONED = {
    "1F44B-1F3FB": ("waving hand: light skin tone", "wheat"),
    "1F44B-1F3FF": ("waving hand: dark skin tone", "saddlebrown"),
}
_SHAPES = {
    "circle": '<circle cx="{x}" cy="16" r="{r}" {p}/>',
    "oval": '<ellipse cx="{x}" cy="16" rx="9" ry="{r}" {p}/>',
    "tall": '<rect x="10" y="{y}" width="12" height="24" {p}/>',
    "square": '<rect x="6" y="{y}" width="20" height="20" {p}/>',
    "heart": '<path d="M16 28 L4 {y} L10 4 L16 9 L22 4 L28 {y} Z" {p}/>',
    "triangle": '<path d="M16 2 L28 28 L{y} 28 Z" {p}/>',
    "star": '<path d="M16 2 L18 {y} L30 16 L18 18 L16 30 L14 18 L2 16 L14 {y} Z" {p}/>',
}
_PAINT = {
    "fluent-flat": ('fill="{c}"', 16, 12, 6),
    "fluent-line": ('fill="none" stroke="black" stroke-width="3"', 16, 12, 6),
    "noto": ('fill="{c}" stroke="maroon" stroke-width="1"', 15, 11, 5),
    "noto-blob": ('fill="{c}" opacity="0.6"', 17, 13, 7),
    "twemoji": ('fill="{c}" stroke="purple" stroke-width="4"', 16, 10, 6),
    "emojione": ('fill="{c}" stroke="teal" stroke-dasharray="3 2" stroke-width="2"', 16, 11, 8),
    "openmoji": ('fill="{c}" stroke="black" stroke-width="2"', 16, 11, 6),
}


def write_packages(folder: Path) -> Path:
    """The packages, unpacked into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, one in SETS.items():
        package = folder / one.package
        package.mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"version": one.version}))
        if one.drawings:
            _write_icons(package, style)
        else:
            _write_files(package / "assets")
    _write_names(folder / NAMES_PACKAGE)
    return folder


def build_set(folder: Path) -> str:
    """A data set built of such packages; its path."""
    from mvader_jax.data.building.catalogue import find_parts
    from mvader_jax.data.building.filters import FilterConfig
    from mvader_jax.data.building.run import build

    parts = find_parts("emoji_styles", write_packages(folder / "packages"))
    build(parts, folder / "set", "emoji_styles", FilterConfig())
    return str(folder / "set")


def _write_icons(package: Path, style: str) -> None:
    paint, x, r, y = _PAINT[style]
    icons, chars = {}, {}
    for points, (name, shape, colour) in SUBJECTS.items():
        icons[slug(name)] = {"body": _SHAPES[shape].format(x=x, r=r, y=y, p=paint.format(c=colour))}
        chars[points.replace("-FE0F", "").lower()] = slug(name)
    for points, (name, colour) in TONED.items():
        if style != "fluent-line":
            icons[slug(name)] = {"body": _SHAPES["square"].format(y=y, p=paint.format(c=colour))}
            chars[points.lower()] = slug(name)
    aliases = {}
    if style in ("noto-blob", "emojione"):  # as theirs: names alone, and one subject under another name
        chars = {}
        icons["apple"] = icons.pop("red-apple")
        aliases = {"red-apple": {"parent": "apple"}}
        del icons["polar-bear"]
    (package / "icons.json").write_text(
        json.dumps({"prefix": style, "width": 32, "height": 32, "icons": icons, "aliases": aliases})
    )
    (package / "chars.json").write_text(json.dumps(chars))


def _write_files(assets: Path) -> None:
    assets.mkdir()
    both = {code: (shape, colour) for code, (_, shape, colour) in SUBJECTS.items()}
    both |= {code: ("square", colour) for code, (_, colour) in TONED.items()}
    for points, (shape, colour) in both.items():
        picture = PIL.Image.new("RGBA", (128, 128))
        draw = PIL.ImageDraw.Draw(picture)
        side = 20 + 4 * list(_SHAPES).index(shape)
        draw.ellipse((16, side, 112, 112), fill=colour, outline="white", width=8)
        draw.text((50, 50), shape[0], fill="black")
        picture.save(assets / f"{points.lower()}.webp", lossless=True)


def _write_names(package: Path) -> None:
    (package / "meta").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": NAMES_VERSION}))
    (package / "meta" / "groups.json").write_text(
        json.dumps({"groups": {"1": "people-body", "4": "food-drink"}})
    )
    for language in LANGUAGES:
        # Names of other languages: the English ones with a mark, told apart by it.
        mark = "" if language == "en" else f" {language}"
        entries = []
        for points, (name, shape, _) in SUBJECTS.items():
            skins = [
                {"label": toned + mark, "hexcode": code}
                for code, (toned, _) in TONED.items()
                if code.startswith(points + "-1F3F")
            ]
            entries.append(
                {
                    "label": name.capitalize() + mark,
                    "hexcode": points,
                    "tags": [shape, f"thing{mark}"],
                    "group": 1 if points.startswith(("1F44", "1F46")) else 4,
                    **({"skins": skins} if skins else {}),
                }
            )
        entries.append({"label": "light skin tone", "hexcode": "1F3FB", "group": 2})
        entries.append({"label": "regional indicator A", "hexcode": "1F1E6"})
        (package / language).mkdir()
        (package / language / "data.json").write_text(json.dumps(entries))
