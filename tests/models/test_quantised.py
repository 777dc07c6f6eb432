"""The decoder's matrices as integers: how near they are, and that a mesh gathers them as they are."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import Decoder, DecoderConfig
from mvader_jax.models.quantised import INTEGERS, integers, numbers, quantised, with_scales
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.sharding import batch_sharding, param_shardings

#: GPT-J's proportions at 1.6 M parameters.
CONFIG = DecoderConfig(64, 64, 256, 2, 2, 128, 1024, 96, rotary_dim=32)
MODEL = ModelConfig(decoder=CONFIG)


def weights() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes, _ = abstract_components(MODEL, ["decoder"])
    return jax.tree_util.tree_map_with_path(lambda path, leaf: micro.draw(rng, path, leaf), shapes)


def hidden(components: dict[str, Any]) -> jax.Array:
    decoder, params = Decoder(CONFIG), {"params": components["decoder"]}
    ids = np.random.default_rng(1).integers(0, 64, (2, 24)).astype(np.int32)
    embeddings = decoder.apply(params, jnp.asarray(ids), method="embed")
    return jax.jit(decoder.apply)(params, embeddings, jnp.zeros(ids.shape))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_the_nearest_to_a_kernel(name: str) -> None:
    """No number is further off than half a step of its group, and a group of zeros stays one."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 256, 40)), jnp.float32).at[:, :, 7].set(0)
    values, scale = integers(kernel, name)
    assert values.dtype == name and values.shape == kernel.shape
    assert scale.shape == (3, 2 if name == "int4" else 1, 40)
    back = jax.vmap(lambda v, s: numbers(v, s, jnp.float32))(values, scale)
    step = jnp.repeat(scale.astype(jnp.float32), 256 // scale.shape[1], axis=1)
    # bfloat16 rounds a scale by 2^-9: the largest number of a group may lie that much beyond the last integer.
    assert jnp.all(jnp.abs(back - kernel) <= step * (0.5 + INTEGERS[name].largest * 2.0**-9))
    assert not jnp.any(back[:, :, 7])


def test_hidden_states_of_random_gpt_j_stay_near() -> None:
    """Measured against float32 on unit-gain Gaussian kernels, which have no structure to help: int8 1.4 %, int4 22 %."""
    components = weights()
    exact = hidden(components)

    def error(name: str) -> float:
        off = hidden(quantised(components, name)) - exact
        return float(jnp.sqrt(jnp.mean(jnp.square(off)) / jnp.mean(jnp.square(exact))))

    assert error("int8") < 0.02
    assert error("int4") < 0.25


def test_what_is_no_matrix_of_a_layer_stays_as_it_is() -> None:
    components = weights() | {"image_prefix": {"proj": {"kernel": jnp.ones((4, 4))}}}
    changed = quantised(components, "int8")
    dtypes = Counter(str(leaf.dtype) for leaf in jax.tree.leaves(changed["decoder"]["layers"]))
    # Six matrices with their scales; the biases of fc_in and fc_out, scale and bias of ln_1.
    assert dtypes == {"int8": 6, "bfloat16": 6, "float32": 4}
    for kept in ("wte", "ln_f", "lm_head"):
        assert changed["decoder"][kept] is not None
        for old, new in zip(
            *map(jax.tree.leaves, (components["decoder"][kept], changed["decoder"][kept])), strict=True
        ):
            assert old is new
    assert changed["image_prefix"]["proj"]["kernel"].dtype == jnp.float32
    # A second time changes nothing, and shapes are those of arrays.
    again = quantised(changed, "int8")
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(changed), strict=True))
    abstract = quantised(jax.eval_shape(lambda: components), "int8")
    assert abstract == jax.eval_shape(lambda: changed)


def test_a_model_without_a_frozen_decoder_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError,
        match=r"frozen_dtype int8 is for .* there are none among unet, vae",
    ):
        quantised({"unet": {}, "vae": {"kernel": jnp.ones(1)}}, "int8")


@pytest.mark.parametrize("name", INTEGERS)
def test_a_mesh_gathers_integers(name: str) -> None:
    """Of the compiled program on eight devices: no matrix travels as numbers. XLA's CPU holds an int4 in a byte."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    shapes, axes = abstract_components(MODEL, ["decoder"])
    shapes = quantised(shapes, name)
    places = param_shardings(shapes, with_scales(axes, shapes), mesh)

    def placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = jax.tree.map(placed, shapes, places)["decoder"]
    x = placed(jax.ShapeDtypeStruct((8, 24, 256), jnp.bfloat16), batch_sharding(mesh, 3))
    weights = placed(jax.ShapeDtypeStruct((8, 24), jnp.float32), batch_sharding(mesh, 2))
    decoder = Decoder(CONFIG, dtype=jnp.bfloat16)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda p, x, w: decoder.apply({"params": p}, x, w))
        text = run.lower(params, x, weights).compile().as_text()
    found = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", text)
    moved = Counter({"s8": 0})
    for dtype, shape in found:
        moved[dtype] += int(np.prod([int(n) for n in shape.split(",")]))
    matrices = 4 * 256 * 256 + 2 * 256 * 1024
    assert moved["s8"] == matrices
    # The scales, and what biases and norms are divided.
    assert sum(moved.values()) - moved["s8"] < matrices / 20
