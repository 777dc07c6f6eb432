"""The paper's models by shape alone: nothing large lies whole on a device."""

from __future__ import annotations

import math

import jax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh

from mvader_jax.errors import UserError
from mvader_jax.models.components import COMPONENTS, abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.sharding import MESH_AXES, REPLICATE_BELOW_BYTES, param_shardings


@pytest.mark.parametrize("model", [ModelConfig.open_m_vader(), ModelConfig.luminous_m_vader()])
@pytest.mark.parametrize(("fsdp", "tensor"), [(16, 1), (16, 2), (1, 2)])
def test_every_large_parameter_is_divided(model: ModelConfig, fsdp: int, tensor: int) -> None:
    """Over both axes where both are there; so are its moments and average, which lie as it does."""
    mesh = AbstractMesh((1, 2, fsdp, tensor), MESH_AXES)
    names = [name for name in COMPONENTS if getattr(model, COMPONENTS[name]) is not None]
    shapes, axes = abstract_components(model, names)
    shardings = flatten_dict(param_shardings(shapes, axes, mesh), sep="/")
    whole = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        held = math.prod(shardings[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
        # Stacked biases are divided over one axis: over both they would fall below the limit anyway.
        if held > REPLICATE_BELOW_BYTES and held * fsdp * tensor > size:
            whole[path] = (leaf.shape, held)
    assert not whole, whole
    assert jax.tree.leaves(shapes)


def test_a_mesh_that_would_leave_a_large_parameter_whole_is_refused() -> None:
    """MAGMA's 50258 tokens are twice an odd number: eight ways of tensor alone do not divide them."""
    model = ModelConfig.open_m_vader()
    shapes, axes = abstract_components(model, ["decoder"])
    with pytest.raises(UserError, match="decoder/wte/embedding"):
        param_shardings(shapes, axes, AbstractMesh((1, 2, 1, 8), MESH_AXES))
