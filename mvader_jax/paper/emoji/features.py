"""What the judge compares: colours and edges at two scales, by arithmetic alone; nothing of it is trained."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

#: Side of the pictures that are compared, and of what is left of them after the first halving.
SIDE, HALF = 64, 32
_ANGLES = 6
#: Of a picture's features the colours at the coarser scale.
COARSE = slice(768, 960)
#: Distances are small differences of large numbers: no accelerator may round their products to fewer bits.
EXACT = jax.lax.Precision.HIGHEST
Pictures = UInt8[jax.Array, "N 64 64 3"]
Small = Float32[jax.Array, "N 32 32 3"]


def features(small: Small) -> Float32[jax.Array, "N 1440"]:
    """A vector a picture; Euclidean distances tell pictures apart, and change little where a pixel moves."""
    fine = _coarser(small)
    edges = _coarser(_coarser(_edges(small)))
    parts = [fine, _coarser(fine), jnp.sqrt(edges + 1e-4), jnp.sqrt(_coarser(edges) + 1e-4)]
    # Each part as a mean over its numbers, so that the finer does not outweigh the coarser.
    flat = [part.reshape(len(part), -1) / np.float32(np.sqrt(part[0].size)) for part in parts]
    return jnp.concatenate(flat, 1)


def shrunk(pictures: Pictures) -> Small:
    """Means of 2 x 2 pixels, 0 to 1."""
    whole = pictures.astype(jnp.float32) / 255
    return whole.reshape(len(pictures), HALF, 2, HALF, 2, 3).mean((2, 4))


def _coarser(maps: jax.Array) -> jax.Array:
    """Half the side: a blur of 3 x 3, then means of 2 x 2 (a step of Burt and Adelson's pyramid)."""
    for axis in (1, 2):
        padded = jnp.pad(maps, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = maps.shape[axis]
        first, second, third, last = (
            jax.lax.slice_in_dim(padded, at, at + size - 1, 2, axis) for at in range(4)
        )
        # The mean of two neighbours' means of three.
        maps = (first + 2 * second + 2 * third + last) / 6
    return maps


def _edges(small: Small) -> Float32[jax.Array, "N 32 32 6"]:
    """How much the brightness changes along each of six directions."""
    light = jnp.einsum("nijc,c->nij", small, np.array([0.3, 0.59, 0.11], np.float32), precision=EXACT)
    dy, dx = (jnp.asarray(jnp.gradient(light, axis=axis)) for axis in (1, 2))
    turns = np.pi * np.arange(_ANGLES) / _ANGLES
    along = dx[..., None] * np.cos(turns).astype(np.float32) + dy[..., None] * np.sin(turns).astype(
        np.float32
    )
    # The fourth power over the strength: a direction's share falls off fast beside it.
    strength = (dx**2 + dy**2)[..., None] + 1e-6
    return along**4 / (strength * jnp.sqrt(strength))


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


def moved(maps: jax.Array, shift: tuple[float, float], scale: float) -> jax.Array:
    """[N, S, S, 3] shifted by (down, right) pixels and scaled about the middle; each border's colour comes in."""
    return _mixed(maps, *_mixing(shift, scale, maps.shape[1]))


def _mixed(maps: jax.Array, rows: jax.Array | np.ndarray, columns: jax.Array | np.ndarray) -> jax.Array:
    # Around the border's colour nothing else can come in than zeros.
    ground = grounds_of(maps)[:, None, None, :]
    around = jnp.einsum("rs,nstc->nrtc", rows, maps - ground, precision=EXACT)
    return jnp.einsum("qt,nrtc->nrqc", columns, around, precision=EXACT) + ground


def grounds_of(maps: jax.Array) -> Float32[jax.Array, "N 3"]:
    """The median colour of each picture's outermost pixels."""
    border = jnp.concatenate([maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]], 1)
    return jnp.median(border.astype(jnp.float32), axis=1)


def squared_distances(
    queries: Float32[jax.Array, "N D"], gallery: Float32[jax.Array, "G D"]
) -> Float32[jax.Array, "N G"]:
    products = jnp.matmul(queries, gallery.T, precision=EXACT)
    return (queries**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * products


def nearest_distances(
    small: Small, gallery: Float32[jax.Array, "G 1440"], align: bool
) -> Float32[jax.Array, "N G"]:
    """Squared distances of pictures to those of a gallery; align: the least over all shifts and scales."""
    own = squared_distances(features(small), gallery)
    if not align:
        return own
    ratio = HALF / SIDE
    mixing = [_mixing((dy * ratio, dx * ratio), scale, HALF) for (dy, dx), scale in _PLACES[1:]]
    rows, columns = (jnp.asarray(np.stack(matrices)) for matrices in zip(*mixing, strict=True))

    def nearer(best: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return jnp.minimum(best, squared_distances(features(_mixed(small, *place)), gallery)), None

    return jax.lax.scan(nearer, own, (rows, columns))[0]
