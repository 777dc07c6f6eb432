"""What the signatures promise is checked in the tests: a wrong shape or type is refused, a right one is not."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mvader_jax.condition import Condition
from mvader_jax.data.batches import Shape, encoder_input
from mvader_jax.data.buckets import nearest_bucket
from mvader_jax.data.sources.encoded import BF16, pack
from mvader_jax.diffusion.levels import levels_of
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.images.pixels import to_float
from mvader_jax.images.preprocess import region_weights
from mvader_jax.models.attention import attend
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.vae import VAE, VAEConfig
from mvader_jax.prompt.theta import log_theta
from mvader_jax.sampling.pipeline import Pipeline


def test_a_wrong_shape_is_refused() -> None:
    q, k = jnp.zeros((2, 5, 3, 8)), jnp.zeros((2, 7, 3, 8))
    assert attend(q, k, k, log_weights=jnp.zeros((2, 7))).shape == q.shape
    with pytest.raises(TypeCheckError, match="log_weights"):
        attend(q, k, k, log_weights=jnp.zeros((2, 5)))
    with pytest.raises(TypeCheckError, match="'v'"):
        attend(q, k, jnp.zeros((2, 6, 3, 8)))
    with pytest.raises(TypeCheckError, match="noise"):
        levels_of(ScheduleConfig(), 5).noised(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4, 2)))


def test_a_condition_whose_fields_do_not_fit_is_refused_where_it_is_read() -> None:
    config, latents = UNetConfig.tiny(), jnp.zeros((2, 8, 8, 4))
    condition = Condition(jnp.zeros((2, 5, 160)), jnp.zeros((2, 4)))
    with pytest.raises(TypeCheckError, match="log_weights"):
        jax.eval_shape(UNet(config).init, jax.random.key(0), latents, jnp.zeros(2), condition)


def test_a_wrong_type_is_refused() -> None:
    q = jnp.zeros((1, 2, 3, 8), jnp.int32)
    with pytest.raises(TypeCheckError, match="'q'"):
        attend(q, q, q)
    with pytest.raises(TypeCheckError, match="images"):
        VAE(VAEConfig.tiny()).init(jax.random.key(0), jnp.zeros((1, 8, 8)), method="encode")


def test_a_wrong_shape_is_refused_on_the_host() -> None:
    pictures = np.zeros((2, 4, 6, 3), np.uint8)
    assert to_float(pictures).shape == pictures.shape
    with pytest.raises(TypeCheckError, match="pixels"):
        to_float(pictures.astype(np.float32))
    with pytest.raises(TypeCheckError, match="shapes"):
        nearest_bucket(np.ones((4, 3), np.int32), ((8, 8),))
    with pytest.raises(TypeCheckError, match="regions"):
        region_weights([(np.ones((2, 2, 1), np.float32), 0.5)], 3)
    with pytest.raises(TypeCheckError, match="thetas"):
        log_theta(np.ones((2, 3)))
    with pytest.raises(TypeCheckError, match="latents"):
        pack(np.zeros((3, 4, 4, 4), BF16), None, ["a hat"])


def test_a_wrong_result_is_refused() -> None:
    """Of a record whose picture has another shape than the batch."""
    shape, picture = Shape(1, encoder_size=8, image_tokens=4), np.zeros((8, 8, 3), np.uint8)
    assert encoder_input([{"image": picture}], shape, None).shape == (1, 8, 8, 3)
    assert encoder_input([{"image": picture}], shape, (4, 5)).shape == (1, 4, 5)
    with pytest.raises(TypeCheckError, match="return value"):
        encoder_input([{"image": picture}], shape, (4, 5, 6))


def test_a_pipeline_refuses_wrong_shapes() -> None:
    pipe = Pipeline.load("tiny")
    with pytest.raises(TypeCheckError, match="latents"):
        pipe.decode(np.zeros((8, 8, 4), np.float32))
    with pytest.raises(TypeCheckError, match="pixels"):
        pipe.features(np.zeros((1, 48, 48, 1), np.float32))


def test_nothing_is_checked_outside_the_tests() -> None:
    """A process of its own: beartype is not even imported."""
    code = """
import sys
import jax
import jax.numpy as jnp
from mvader_jax.condition import Condition
from mvader_jax.models.attention import attend
Condition(jnp.zeros((2, 5, 8)), jnp.zeros((2, 4)))
sys.exit("beartype" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
