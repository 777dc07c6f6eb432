"""The VAE: sizes, shapes, the posterior, wrong input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.errors import UserError
from mvader_jax.models.vae import VAE, VAEConfig
from mvader_jax.parallel.sharding import abstract_init, init_params

SMALL = VAEConfig(block_out_channels=(8, 12), layers_per_block=1, latent_channels=3, norm_groups=4)


def shapes(config: VAEConfig) -> dict[tuple[str, ...], Any]:
    side = config.multiple
    return flatten_dict(abstract_init(VAE(config), jnp.zeros((1, side, side, 3)), jax.random.key(0))[0])


def count(config: VAEConfig) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in shapes(config).values())


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (2, 6, 10, 3), minval=-1, maxval=1)


@pytest.fixture(scope="module")
def params(images: jax.Array) -> Any:
    return init_params(VAE(SMALL), jax.random.key(2), images, jax.random.key(3))


@pytest.fixture(scope="module")
def moments(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return encode(params, images)


encode = jax.jit(lambda params, images: VAE(SMALL).apply({"params": params}, images, method="encode"))
decode = jax.jit(lambda params, latents: VAE(SMALL).apply({"params": params}, latents, method="decode"))
rebuild = jax.jit(lambda params, images, key: VAE(SMALL).apply({"params": params}, images, key))


def test_stable_diffusion_has_its_number_of_parameters() -> None:
    assert count(VAEConfig.sd14()) == 83_653_863


def test_tiny_makes_eight_by_eight_of_sixty_four() -> None:
    config = VAEConfig.tiny()
    assert count(config) < 1e6
    mean, logvar = jax.eval_shape(
        lambda key: VAE(config).init_with_output(key, jnp.zeros((1, 64, 64, 3)), method="encode")[0],
        jax.random.key(0),
    )
    assert mean.shape == logvar.shape == (1, 8, 8, 4)
    assert config.multiple == 8


def test_names_of_the_parameters() -> None:
    tree = shapes(VAEConfig.tiny())
    for path in (
        "encoder/mid_block/attentions_0/group_norm/scale",
        "decoder/mid_block/attentions_0/to_out_0/kernel",
        "encoder/down_blocks_2/downsamplers_0/conv/kernel",
        "decoder/up_blocks_2/upsamplers_0/conv/bias",
        "quant_conv/kernel",
        "post_quant_conv/bias",
    ):
        assert tuple(path.split("/")) in tree


def test_every_kernel_names_its_axes(images: jax.Array) -> None:
    abstract, names = abstract_init(VAE(SMALL), images, jax.random.key(0))
    axes = flatten_dict(names)
    for path, leaf in flatten_dict(abstract).items():
        assert leaf.ndim < 2 or None not in axes[path], path


def test_a_picture_that_is_not_square(
    params: Any, images: jax.Array, moments: tuple[jax.Array, jax.Array]
) -> None:
    mean, logvar = moments
    assert mean.shape == logvar.shape == (2, 3, 5, 3)
    assert decode(params, mean).shape == images.shape


def test_a_call_decodes_a_sample_of_the_posterior(
    params: Any, images: jax.Array, moments: tuple[jax.Array, jax.Array]
) -> None:
    key = jax.random.key(4)
    mean, logvar = moments
    sample = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    found = rebuild(params, images, key)
    np.testing.assert_allclose(found, decode(params, sample), atol=1e-4)
    assert np.array_equal(found, rebuild(params, images, key))
    assert not np.array_equal(found, rebuild(params, images, jax.random.key(5)))


def test_the_log_variance_is_clipped(params: Any, images: jax.Array) -> None:
    bias = jnp.array([0, 0, 0, 1e4, -1e4, 0.0])
    extreme = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
    mean, logvar = encode(extreme, images)
    assert np.all(logvar[..., 0] == 20) and np.all(logvar[..., 1] == -30)
    assert np.abs(mean).max() < 100


def test_computes_in_bfloat16(params: Any, images: jax.Array, moments: tuple[jax.Array, jax.Array]) -> None:
    low = jax.jit(
        lambda params, images: VAE(SMALL, jnp.bfloat16).apply({"params": params}, images, method="encode")
    )
    mean, _ = low(params, images)
    assert mean.dtype == jnp.bfloat16
    exact = np.asarray(moments[0])
    assert 0 < np.abs(np.asarray(mean, np.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_wrong_sizes(params: Any) -> None:
    with pytest.raises(UserError, match=r"7 x 8; .* multiples of 2"):
        VAE(SMALL).apply({"params": params}, jnp.zeros((1, 7, 8, 3)), method="encode")
    with pytest.raises(UserError, match="level 1 has 12 channels"):
        VAEConfig(block_out_channels=(8, 12), norm_groups=8)
    with pytest.raises(UserError, match="at least one"):
        VAEConfig(block_out_channels=())
