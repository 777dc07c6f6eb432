"""The sets of pictures that make the world: a style each, from an npm package each, under a licence each."""

from __future__ import annotations

import dataclasses

#: Names and tags of the subjects, in many languages (MIT; names from Unicode's CLDR).
NAMES_PACKAGE, NAMES_VERSION = "emojibase-data", "17.0.0"


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """One set.

    package, version: on the npm registry. licence: of its pictures (SPDX); credit: whom it names.
    shippable: whether weights trained on it may be passed on under any licence that names the credit. drawings:
    SVG bodies in Iconify's `icons.json`; otherwise a file a picture, named by its code points.
    """

    package: str
    version: str
    licence: str
    credit: str
    shippable: bool = True
    drawings: bool = True


#: By the name of their style.
SETS: dict[str, EmojiSet] = {
    "fluent-3d": EmojiSet("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft", drawings=False),
    "fluent-flat": EmojiSet("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft"),
    "fluent-line": EmojiSet("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft"),
    "noto": EmojiSet("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google"),
    "noto-blob": EmojiSet("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google"),
    "twemoji": EmojiSet("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter and other contributors"),
    "emojione": EmojiSet("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "Emoji One (version 2)"),
    "openmoji": EmojiSet("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", shippable=False),
}
#: Styles whose pictures go into weights that are passed on: what a build takes where nothing is said.
STYLES: tuple[str, ...] = tuple(name for name, one in SETS.items() if one.shippable)
#: Styles in which a subject stands at the same place in the same pose: pixels can be compared.
ALIGNED = ("fluent-3d", "fluent-flat", "fluent-line")


def install_command(folder: str) -> str:
    """The shell command that fetches every package, at its version, into a folder."""
    named = [f"{one.package}@{one.version}" for one in SETS.values()]
    return (
        f"npm install --prefix {folder} --ignore-scripts --no-audit --no-fund "
        f"{' '.join([*named, f'{NAMES_PACKAGE}@{NAMES_VERSION}'])}"
    )
