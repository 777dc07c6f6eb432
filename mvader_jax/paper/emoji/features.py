"""What the judge compares: colours and edges at two scales, by arithmetic alone; nothing of it is trained."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32, UInt8

#: Side of the pictures that are compared, and of what is left of them after the first halving.
SIDE, HALF = 64, 32
_ANGLES = 6
Pictures = UInt8[np.ndarray, "N 64 64 3"]
Small = Float32[np.ndarray, "N 32 32 3"]


def features(small: Small) -> Float32[np.ndarray, "N 1440"]:
    """A vector a picture; Euclidean distances tell pictures apart, and change little where a pixel moves."""
    fine = _coarser(small)
    edges = _coarser(_coarser(_edges(small)))
    parts = [fine, _coarser(fine), np.sqrt(edges + 1e-4), np.sqrt(_coarser(edges) + 1e-4)]
    # Each part as a mean over its numbers, so that the finer does not outweigh the coarser.
    flat = [part.reshape(len(part), -1) / np.float32(np.sqrt(part[0].size)) for part in parts]
    return np.concatenate(flat, 1)


def shrunk(pictures: Pictures) -> Small:
    """Means of 2 x 2 pixels, 0 to 1."""
    return pictures.reshape(len(pictures), HALF, 2, HALF, 2, 3).mean((2, 4), dtype=np.float32) / np.float32(
        255
    )


def _coarser(maps: np.ndarray) -> np.ndarray:
    """Half the side: a blur of 3 x 3, then means of 2 x 2 (a step of Burt and Adelson's pyramid)."""
    for axis in (1, 2):
        padded = np.pad(maps, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = maps.shape[axis]
        first, second, third, last = (np.take(padded, np.arange(at, at + size, 2), axis) for at in range(4))
        # The mean of two neighbours' means of three.
        maps = (first + 2 * second + 2 * third + last) / np.float32(6)
    return maps


def _edges(small: Small) -> Float32[np.ndarray, "N 32 32 6"]:
    """How much the brightness changes along each of six directions."""
    light = small @ np.array([0.3, 0.59, 0.11], np.float32)
    dy, dx = (np.gradient(light, axis=axis) for axis in (1, 2))
    turns = np.pi * np.arange(_ANGLES) / _ANGLES
    along = dx[..., None] * np.cos(turns).astype(np.float32) + dy[..., None] * np.sin(turns).astype(
        np.float32
    )
    # The fourth power over the strength: a direction's share falls off fast beside it.
    strength = (dx**2 + dy**2)[..., None] + np.float32(1e-6)
    return along**4 / strength**1.5


#: How a picture may lie otherwise than its original and be the same: shifts in pixels of 64, scales.
SHIFTS, SCALES = (-2, 0, 2), (0.95, 1.0, 1.05)
#: Itself first.
_PLACES = sorted(
    (((dy, dx), scale) for dy in SHIFTS for dx in SHIFTS for scale in SCALES),
    key=lambda one: one != ((0, 0), 1.0),
)


@functools.lru_cache(maxsize=64)
def _mixing(shift: tuple[float, float], scale: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear interpolation along rows and along columns as matrices [side, side]; what lies outside is zero."""
    middle = (side - 1) / 2
    both = []
    for moved_by in shift:
        place = (np.arange(side) - middle) / scale + middle - moved_by
        matrix = np.zeros((side, side), np.float32)
        for row, at in enumerate(place):
            low = int(np.floor(at))
            for pixel, part in ((low, 1 - (at - low)), (low + 1, at - low)):
                if 0 <= pixel < side:
                    matrix[row, pixel] += part
        both.append(matrix)
    return both[0], both[1]


def moved(maps: np.ndarray, shift: tuple[float, float], scale: float) -> np.ndarray:
    """[N, S, S, 3] shifted by (down, right) pixels and scaled about the middle; each border's colour comes in."""
    side = maps.shape[1]
    rows, columns = _mixing(shift, scale, side)
    # Around the border's colour nothing else can come in than zeros.
    ground = grounds_of(maps)[:, None, None, :]
    around = maps - ground
    around = np.einsum("rs,nstc->nrtc", rows, around, optimize=True)
    return np.einsum("qt,nrtc->nrqc", columns, around, optimize=True) + ground


def grounds_of(maps: np.ndarray) -> np.ndarray:
    """The median colour of each picture's outermost pixels: [N, 3]."""
    border = np.concatenate([maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]], 1)
    return np.median(border, axis=1).astype(np.float32)


def variants(small: Small) -> Float32[np.ndarray, "27 N 32 32 3"]:
    """The pictures as they would lie after each shift and scale, as they are first."""
    ratio = HALF / SIDE
    return np.stack(
        [moved(small, (dy * ratio, dx * ratio), scale).astype(np.float32) for (dy, dx), scale in _PLACES]
    )
