"""What every parity test shares: PyTorch weights as our trees, and how close two results must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import unflatten_dict


def tree_of(state: Mapping[str, torch.Tensor], rename: Callable[[str], str] = lambda name: name) -> Any:
    """A PyTorch state dict as a Flax tree: `.3` joins its parent, kernels are transposed, norms renamed."""
    flat = {}
    for name, tensor in state.items():
        path = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", rename(name)).split(".")
        value = tensor.detach().numpy()
        if path[-1] == "weight":
            if value.ndim == 4:
                path[-1], value = "kernel", value.transpose(2, 3, 1, 0)
            elif value.ndim == 2:
                path[-1], value = "kernel", value.T
            else:
                path[-1] = "scale"
        flat[tuple(path)] = jnp.asarray(value)
    return unflatten_dict(flat)


def close(ours: Any, theirs: torch.Tensor, tolerance: float) -> None:
    """max |a - b| <= tolerance x max |b|."""
    expected = theirs.detach().numpy()
    found = np.asarray(ours)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.2e} above {tolerance}"


def jitter(module: torch.nn.Module) -> torch.nn.Module:
    """Random norms and biases too: fresh ones are ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def array(x: torch.Tensor) -> jax.Array:
    """A tensor as JAX's array."""
    return jnp.asarray(x.detach().numpy())


def nhwc(x: torch.Tensor) -> jax.Array:
    """PyTorch's [B, C, h, w] as JAX's [B, h, w, C]."""
    return array(x.detach().permute(0, 2, 3, 1))


def nchw(x: Any) -> np.ndarray:
    """The inverse of `nhwc`, as NumPy."""
    return np.asarray(x).transpose(0, 3, 1, 2)
