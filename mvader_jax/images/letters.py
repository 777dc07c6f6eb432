"""Text on pictures in any script: this package's font, and the system's for what it lacks.

DejaVu Sans (`assets/fonts`) has the Latin, Greek and Cyrillic letters. Fonts with Chinese, Japanese and Korean are 4
MB and up, and most systems have one: Pillow finds them by the names of their files.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

import PIL.ImageDraw
import PIL.ImageFont

from mvader_jax.errors import Notice

_OWN = str(Path(__file__).parents[1] / "assets" / "fonts" / "DejaVuSans.ttf")
#: Fonts for other scripts as Linux, macOS and Windows name them, the widest first.
_SYSTEM = (
    *(
        "NotoSansCJK-Regular.ttc",
        "NotoSansCJKsc-Regular.otf",
        "NotoSansSC-Regular.otf",
        "NotoSansJP-Regular.otf",
    ),
    *(
        "NotoSansKR-Regular.otf",
        "SourceHanSans-Regular.ttc",
        "DroidSansFallbackFull.ttf",
        "DroidSansFallback.ttf",
    ),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "Arial Unicode.ttf", "Hiragino Sans GB.ttc", "PingFang.ttc"),
    *("AppleSDGothicNeo.ttc", "msyh.ttc", "YuGothR.ttc", "malgun.ttf", "arial.ttf", "seguisym.ttf"),
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoEmoji-Regular.ttf", "unifont.otf"),
)
#: A code point that is no character, and so in no font.
_NOBODY = "\U0010ffff"
_BLANKS = re.compile(r"[^\S\u00a0]+")
#: Characters that a sentence about missing ones names.
_NAMED = 12


@dataclasses.dataclass(frozen=True)
class Letters:
    """The fonts at a size, in pixels."""

    size: int

    @property
    def height(self) -> int:
        """From one line to the next, in pixels."""
        return round(1.25 * self.size)

    def length(self, text: str) -> float:
        """The width of a line, in pixels."""
        return sum(font.getlength(run) for run, font in self._runs(text))

    def draw(self, pen: PIL.ImageDraw.ImageDraw, corner: tuple[float, float], text: str) -> None:
        """A line in black, its top left corner here."""
        x, baseline = corner[0], corner[1] + self.size
        for run, font in self._runs(text):
            pen.text((x, baseline), run, fill="black", font=font, anchor="ls")
            x += font.getlength(run)

    def wrap(self, text: str, width: float) -> list[str]:
        """Lines at most `width` long: broken between words, and within one that is longer than a line.

        A non-breaking space is within a word.
        """
        lines: list[str] = []
        for word in filter(None, _shown(text).split(" ")):
            if lines and self.length(f"{lines[-1]} {word}") <= width:
                lines[-1] = f"{lines[-1]} {word}"
                continue
            lines.append("")
            for letter in word:
                if lines[-1] and self.length(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        return lines

    def _runs(self, text: str) -> Iterable[tuple[str, PIL.ImageFont.FreeTypeFont]]:
        for name, run in itertools.groupby(_shown(text), _font_with):
            font = _font(name or _OWN, self.size)
            assert font is not None
            yield "".join(run), font


def check_letters(texts: Iterable[str]) -> None:
    """Says which characters of the texts no font here has; they are drawn as boxes."""
    missing = sorted({one for text in texts for one in _shown(text) if _font_with(one) is None})
    if missing:
        named = " ".join(missing[:_NAMED]) + " ..." * (len(missing) > _NAMED)
        warnings.warn(
            f"no font here has {named}: drawn as boxes; install one that has, such as Noto Sans CJK",
            Notice,
            stacklevel=2,
        )


def _shown(text: str) -> str:
    """Letters and their marks as one character where there is one; without what a font does not draw."""
    composed = unicodedata.normalize("NFC", _BLANKS.sub(" ", text.strip()))
    return "".join(
        one for one in composed if unicodedata.category(one) not in ("Cc", "Cf") and one != "\ufe0f"
    )


@functools.cache
def _font_with(letter: str) -> str | None:
    """The first font that has a character."""
    return next((name for name in (_OWN, *_SYSTEM) if _has(name, letter)), None)


def _has(name: str, letter: str) -> bool:
    font = _font(name, 16)
    return font is not None and (letter == " " or _drawn(font, letter) != _drawn(font, _NOBODY))


def _drawn(font: PIL.ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.cache
def _font(name: str, size: int) -> PIL.ImageFont.FreeTypeFont | None:
    """A font by its file's path or name; None where there is none, or it has no such size."""
    try:
        return PIL.ImageFont.truetype(name, size)
    except OSError:
        return None
