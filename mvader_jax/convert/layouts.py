"""Named layout changes between PyTorch's tensors and ours, each with its inverse.

A layout says how one tensor of a file becomes a slice of one of our leaves. Most are a permutation of
axes; fused tensors hold several of our slices, told apart by `part`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """axes: ours[i] is axis axes[i] of the file's tensor; None keeps the order. drop: trailing axes of
    length 1 that only the file has. parts: how many of our slices one tensor holds: its first axis is
    (heads, parts, rest), head by head.
    """

    name: str
    axes: Shape | None = None
    drop: int = 0
    parts: int = 1
    heads: int = 1

    def ours(self, tensor: np.ndarray, part: int = 0) -> np.ndarray:
        """A tensor of the file as our slice (its part number `part`), contiguous."""
        if self.parts > 1:
            rest: Shape = tensor.shape[1:]
            rows = len(tensor) // (self.parts * self.heads)
            split = tensor.reshape((self.heads, self.parts, rows, *rest))
            tensor = split[:, part].reshape((self.heads * rows, *rest))
        if self.drop:
            tensor = tensor.reshape(tensor.shape[: -self.drop])
        return permuted(tensor, self.axes)

    def external(self, slices: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse: our slices, one a part in order, as the tensor of the file."""
        restored: list[np.ndarray] = []
        for piece in slices:
            if self.axes is not None:
                piece = permuted(piece, tuple(int(i) for i in np.argsort(self.axes)))
            restored.append(piece.reshape(piece.shape + (1,) * self.drop))
        if self.parts == 1:
            return restored[0]
        rows = restored[0].shape[0] // self.heads
        split = [piece.reshape(self.heads, rows, *piece.shape[1:]) for piece in restored]
        return np.stack(split, axis=1).reshape(self.parts * restored[0].shape[0], *restored[0].shape[1:])

    def external_shape(self, shape: Shape) -> Shape:
        """The shape in the file of a slice of `shape`."""
        if self.axes is not None:
            shape = tuple(shape[int(i)] for i in np.argsort(self.axes))
        return (self.parts * shape[0], *shape[1:], *(1,) * self.drop)


#: Vectors, embeddings, scalars.
SAME = Layout("same")
#: nn.Linear's [out, in] <-> [in, out].
LINEAR = Layout("linear", (1, 0))
#: nn.Conv2d's [out, in, h, w] <-> [h, w, in, out].
CONV = Layout("conv", (2, 3, 1, 0))
#: A 1x1 convolution that is a linear layer here: [out, in, 1, 1] <-> [in, out].
POINTWISE = Layout("pointwise", (1, 0), drop=2)


def fused_linear(parts: int, heads: int = 1) -> Layout:
    """Several linear layers in one [parts * out, in]; with heads, [heads, parts, out / heads, in]."""
    return Layout("fused_linear", (1, 0), parts=parts, heads=heads)


def fused_vector(parts: int, heads: int = 1) -> Layout:
    """The biases of `fused_linear`."""
    return Layout("fused_vector", parts=parts, heads=heads)


def permuted(tensor: np.ndarray, axes: Shape | None) -> np.ndarray:
    """`tensor.transpose(axes)` in contiguous memory, perhaps read-only.

    Where the first axis becomes the last, JAX turns the tensor on its way to the host's own device: three
    times as fast as NumPy, which copies number by number.
    """
    if axes is None:
        return np.ascontiguousarray(tensor)
    turned = tensor.transpose(axes)
    host = _host() if axes[-1] == 0 and tensor.size >= 1 << 12 and tensor.itemsize <= 4 else None
    if host is None:
        return np.ascontiguousarray(turned)
    # As integers, whose bits nobody changes.
    bits = turned.view(f"u{tensor.itemsize}")
    return np.asarray(jax.device_put(bits, host)).view(tensor.dtype)


@functools.cache
def _host() -> Any:
    """JAX's device that is the host's memory; None where JAX was told to use other platforms alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
