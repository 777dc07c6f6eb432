"""Which activations the backward pass finds in memory, and which it computes again."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax

Module = TypeVar("Module", bound=type[nn.Module])

#: none: everything is kept. products: the results of matrix products and convolutions are kept, the cheap
#: rest is computed again. blocks: only what enters a block (a decoder layer, a resnet, a transformer).
Remat = Literal["none", "products", "blocks"]

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _PRODUCTS


def rematerialised(module: Module, remat: Remat, *, scanned: bool = False) -> Module:
    """`module` under the policy. scanned: its body is a loop's, which XLA does not merge with another."""
    if remat == "none":
        return module
    policy = _is_product if remat == "products" else jax.checkpoint_policies.nothing_saveable
    return nn.remat(module, policy=policy, prevent_cse=not scanned)
