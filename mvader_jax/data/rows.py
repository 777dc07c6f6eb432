"""Fixed shares of image rows, interleaved rows and caption rows in batches of one shape.

A batch of B samples is cut into G groups of n = B / G. Within a group the first samples are
conditioned on their own image, the last on their caption, those between on an interleaved prompt. How
many of each is a whole number, so the exact share falls between two of them; counted over all groups of
the run, the k-th boundary is floor((k + 1) n p) - floor(k n p) (Bresenham's line), which never strays
from the share by one sample. The arrays have room for the larger number: where two kinds overlap, both
rows exist and a flag says which one the sample uses.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Which samples of a group of `samples` have a row of which kind; the same for every batch.

    Image rows belong to samples [0, image_rows), interleaved rows to
    [interleaved_start, interleaved_start + interleaved_rows), caption rows to the last `text_rows`.
    """

    samples: int
    p_image: Fraction
    p_interleaved: Fraction
    image_rows: int
    interleaved_start: int
    interleaved_rows: int
    text_rows: int

    @property
    def text_start(self) -> int:
        return self.samples - self.text_rows


def row_layout(samples: int, p_image: float, p_interleaved: float = 0.0) -> RowLayout:
    """The layout of groups of `samples` samples with these shares; captions take the rest.

    Shares are read as decimal fractions, so that 0.2 means 1/5. Raises UserError for shares outside of
    [0, 1] or that sum to more than 1, and for groups too small to hold one interleaved prompt each: the
    boundaries of the three kinds could cross.
    """
    image, interleaved = _fraction(p_image, "p_image"), _fraction(p_interleaved, "p_interleaved")
    if image + interleaved > 1:
        raise UserError(f"p_image {p_image} and p_interleaved {p_interleaved} sum to more than 1")
    if samples < 1:
        raise UserError(f"a group of the batch holds {samples} samples; at least 1 is needed")
    if interleaved and samples * interleaved < 1 and image + interleaved < 1:
        raise UserError(
            f"p_interleaved {p_interleaved} of {samples} samples per group is less than one prompt; "
            "take a larger batch or a larger share"
        )
    first, second = samples * image, samples * (image + interleaved)
    start = math.floor(first)
    return RowLayout(
        samples=samples,
        p_image=image,
        p_interleaved=interleaved,
        image_rows=math.ceil(first),
        interleaved_start=start,
        interleaved_rows=math.ceil(second) - start if interleaved else 0,
        text_rows=samples - math.floor(second),
    )


def row_ends(layout: RowLayout, group: int) -> tuple[int, int]:
    """(a, b) of the `group`-th group of the run: its samples [0, a) use their image, [a, b) their
    interleaved prompt, the others their caption."""
    first = _step(group, layout.samples * layout.p_image)
    second = _step(group, layout.samples * (layout.p_image + layout.p_interleaved))
    return first, second


def interleaved_before(layout: RowLayout, group: int) -> int:
    """Samples with an interleaved prompt in all groups of the run before the `group`-th."""
    rate = layout.samples * layout.p_image
    both = layout.samples * (layout.p_image + layout.p_interleaved)
    return math.floor(group * both) - math.floor(group * rate)


def kinds(layout: RowLayout, first_group: int, groups: int) -> np.ndarray:
    """int8 [groups, samples]: 0 image, 1 interleaved, 2 caption, for consecutive groups of the run."""
    out = np.full((groups, layout.samples), TEXT, np.int8)
    for i in range(groups):
        image, interleaved = row_ends(layout, first_group + i)
        out[i, image:interleaved] = INTERLEAVED
        out[i, :image] = IMAGE
    return out


IMAGE, INTERLEAVED, TEXT = 0, 1, 2


def _step(index: int, rate: Fraction) -> int:
    return math.floor((index + 1) * rate) - math.floor(index * rate)


def _fraction(value: float, name: str) -> Fraction:
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}; expected a share between 0 and 1")
    return Fraction(str(value)).limit_denominator(1_000_000)
