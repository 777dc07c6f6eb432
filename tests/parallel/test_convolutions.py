"""Convolutions on a mesh with data, fsdp and tensor axes: the numbers of a single device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import micro
import numpy as np

from mvader_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.sharding import abstract_init, batch_sharding, param_shardings


def test_the_image_encoders_gradient_is_that_of_one_device() -> None:
    """Left to itself, XLA's partitioner gives a sharded convolution another device's rows, silently."""
    encoder = ImageEncoder(ImageEncoderConfig((1, 1, 1, 1), 8, 32))
    shapes, axes = abstract_init(encoder, jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: micro.draw(rng, path, leaf), shapes)
    pixels = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)

    def loss(params: object, pixels: jax.Array) -> jax.Array:
        tokens = encoder.apply({"params": params}, pixels)
        return jnp.mean(jnp.sin(tokens) * jnp.cos(jnp.arange(tokens.size).reshape(tokens.shape)))

    expected = jax.jit(jax.grad(loss))(params, pixels)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, param_shardings(shapes, axes, mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(loss))(placed, jax.device_put(pixels, batch_sharding(mesh, 4)))
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(expected)[0], jax.tree.leaves(found), strict=True
    ):
        largest = np.abs(a).max()
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * largest + 1e-9, err_msg=str(path))
