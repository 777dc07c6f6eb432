"""Where in a picture each element of its prompt was looked at, and how much: `pipe.attend("...")`.

seen = pipe.attend(["in green", mv.Image("circle.png")], seed=3)
seen.shares, seen.asked         # [B, E]: the attention each element got; [E]: what its weight asks for
seen.maps                       # [B, E, H, W]: the same of each place
seen.sheet().save("seen.png")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float32, Float64

from mvader_jax.images.sheet import enlarged, grid
from mvader_jax.prompt.elements import Element, Image, Text
from mvader_jax.prompt.theta import wanted_shares
from mvader_jax.sampling.pictures import Pictures

#: The side, in pixels, that small pictures are enlarged to on a sheet, so that labels fit below them.
_SIDE = 192
#: What the hottest place is drawn in, and how much of it.
_HOT, _MOST = (255, 64, 0), 0.75


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """The UNet's cross-attention to the elements of a prompt, the mean of all heads, cross-attentions and steps.

    pictures: what was drawn meanwhile. elements: the prompt's. places: float32 [B, E, h, w], the part of the attention
    that each element got at each place of the latents; the rest went to positions of no element.
    """

    pictures: Pictures
    elements: tuple[Element, ...]
    places: Float32[np.ndarray, "B E h w"]

    @property
    def shares(self) -> Float32[np.ndarray, "B E"]:
        """The part of the whole attention that each element got, 0 to 1."""
        return self.places.mean((2, 3))

    @property
    def asked(self) -> Float64[np.ndarray, " E"]:
        """The shares in proportion to the weights, which `balance="attention"` brings about; 0 of weight 0."""
        return wanted_shares([one.weight for one in self.elements], [_lives(one) for one in self.elements])

    @property
    def maps(self) -> Float32[np.ndarray, "B E H W"]:
        """`places` at the size of the pictures, bilinear."""
        size = self.pictures[0].size
        return np.stack([[_resized(place, size) for place in row] for row in self.places])

    def overlay(self, picture: int, element: int) -> PIL.Image.Image:
        """A picture, its places the redder the more of their attention went to an element: not red where it got least,
        as red as red becomes where it got most."""
        heat = _resized(self.places[picture, element], self.pictures[picture].size)
        heat = _MOST * (heat - heat.min()) / max(float(np.ptp(heat)), 1e-9)
        grey = np.asarray(self.pictures[picture].convert("L"), np.float32)[..., None]
        mixed = (1 - heat[..., None]) * grey + heat[..., None] * np.asarray(_HOT, np.float32)
        return PIL.Image.fromarray(mixed.round().astype(np.uint8))

    def sheet(self) -> PIL.Image.Image:
        """A row per picture: itself, then its overlay of each element, labelled with what it got and what it asked for."""
        cells: list[Any] = []
        labels: list[str] = []
        for number, picture in enumerate(self.pictures):
            overlays = [self.overlay(number, i) for i in range(len(self.elements))]
            cells += [enlarged(one, _SIDE) for one in (picture, *overlays)]
            rows = zip(self.elements, self.shares[number], self.asked, strict=True)
            labels += ["", *(f"{name(one)}: got {got:.0%}, asked {asked:.0%}" for one, got, asked in rows)]
        return grid(cells, 1 + len(self.elements), labels)


def name(element: Element) -> str:
    """What an element is called on a sheet."""
    if isinstance(element, Text):
        return element.text if len(element.text) <= 40 else f"{element.text[:37]}..."
    return element.path or "picture"


def _lives(element: Element) -> np.ndarray:
    """Factors that tell whether anything of an element is not suppressed."""
    whole = isinstance(element, Image) and any(
        by == 0 and where == (0.0, 0.0, 1.0, 1.0)
        for where, by in element.checked_regions
        if isinstance(where, tuple)
    )
    return np.zeros(1) if whole else np.ones(1)


def _resized(place: Float32[np.ndarray, "h w"], size: Sequence[int]) -> Float32[np.ndarray, "H W"]:
    picture = PIL.Image.fromarray(np.ascontiguousarray(place, np.float32))
    return np.asarray(picture.resize((size[0], size[1]), PIL.Image.Resampling.BILINEAR), np.float32)
