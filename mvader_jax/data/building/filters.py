"""Which records are kept: the paper's filters, each a setting, each rejection with its reason.

Filters on metadata are asked before the picture is read, let alone decoded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from mvader_jax.bounds import NonNegativeInt, PositiveInt, Share, any_number, at_least
from mvader_jax.data.building.schema import SPELLINGS, number, text
from mvader_jax.errors import UserError
from mvader_jax.settings import Checked

#: Captions are cut at a few dozen tokens in training: a longer text than this is a page, not a caption.
MAX_CAPTION = 2000
#: Sides in a larger ratio leave nothing of the picture in a square crop.
MAX_ASPECT = 20.0


@dataclasses.dataclass(frozen=True)
class FilterConfig(Checked):
    """None turns a filter off.

    min_aesthetic: kept above it, exclusive. min_size: least original width and height in pixels.
    max_watermark, max_punsafe: greatest probability kept, inclusive.
    nsfw: tags kept, in any case. languages: of the language column, in any case.
    min_caption, max_caption: characters. max_aspect: longer side by shorter.
    """

    min_aesthetic: Annotated[float, any_number("scores have no end")] | None = None
    min_size: PositiveInt | None = None
    max_watermark: Share | None = None
    max_punsafe: Share | None = None
    nsfw: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    min_caption: NonNegativeInt = 1
    max_caption: PositiveInt = MAX_CAPTION
    max_aspect: Annotated[float, at_least(1)] = MAX_ASPECT

    @classmethod
    def paper(cls) -> FilterConfig:
        """The paper's section 3 and appendix B: aesthetic > 5, 512 x 512 and more, watermark <= 0.5."""
        return cls(min_aesthetic=5.0, min_size=512, max_watermark=0.5)

    def needs(self) -> tuple[str, ...]:
        """Columns of the metadata without which this filter cannot be asked."""
        wanted = {
            "aesthetic": self.min_aesthetic,
            "watermark": self.max_watermark,
            "punsafe": self.max_punsafe,
            "nsfw": self.nsfw,
            "language": self.languages,
        }
        return tuple(column for column, setting in wanted.items() if setting is not None)

    def check_columns(self, known: Collection[str], where: str) -> None:
        """Raises UserError if the metadata of `where` lacks a column that a filter needs."""
        missing = [column for column in self.needs() if column not in known]
        if missing:
            names = "; ".join(f"{column} ({', '.join(SPELLINGS[column])})" for column in missing)
            raise UserError(
                f"{where} has no metadata column for the filter on {names}; turn it off or add the column"
            )

    def reject(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a record of these columns (of `schema.SPELLINGS`) is not kept; None if it is."""
        if self.min_aesthetic is not None:
            score = number(metadata.get("aesthetic"))
            if math.isnan(score):
                return "aesthetic score is not a number"
            if score <= self.min_aesthetic:
                return f"aesthetic score <= {self.min_aesthetic:g}"
        for name, limit in (("watermark", self.max_watermark), ("punsafe", self.max_punsafe)):
            if limit is not None:
                score = number(metadata.get(name))
                if math.isnan(score):
                    return f"{name} is not a number"
                if score > limit:
                    return f"{name} > {limit:g}"
        if self.nsfw is not None and text(metadata.get("nsfw")).lower() not in _lower(self.nsfw):
            return f"nsfw tag is not {' or '.join(self.nsfw)}"
        if self.languages is not None and text(metadata.get("language")).lower() not in _lower(
            self.languages
        ):
            return f"language is not {' or '.join(self.languages)}"
        width, height = number(metadata.get("original_width")), number(metadata.get("original_height"))
        return None if math.isnan(width) or math.isnan(height) else self.reject_size(width, height)

    def reject_size(self, width: float, height: float) -> str | None:
        """Why a picture of this original size is not kept."""
        if self.min_size is not None and min(width, height) < self.min_size:
            return f"smaller than {self.min_size} x {self.min_size}"
        if max(width, height) > self.max_aspect * min(width, height):
            return f"sides in a ratio above {self.max_aspect:g}"
        return None

    def reject_caption(self, caption: str) -> str | None:
        """Why this caption is not kept."""
        length = len(caption.strip())
        if not length:
            return "caption empty"
        if length < self.min_caption:
            return f"caption shorter than {self.min_caption} characters"
        if length > self.max_caption:
            return f"caption longer than {self.max_caption} characters"
        return None


def _lower(tags: tuple[str, ...]) -> set[str]:
    return {tag.lower() for tag in tags}
