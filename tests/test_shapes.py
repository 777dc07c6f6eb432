"""What the signatures promise is checked in the tests: a wrong shape or type is refused, a right one is not."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from mvader_jax.condition import Condition
from mvader_jax.diffusion.levels import levels_of
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.attention import attend
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.vae import VAE, VAEConfig


def test_a_wrong_shape_is_refused() -> None:
    q, k = jnp.zeros((2, 5, 3, 8)), jnp.zeros((2, 7, 3, 8))
    assert attend(q, k, k, log_weights=jnp.zeros((2, 7))).shape == q.shape
    with pytest.raises(TypeCheckError, match="log_weights"):
        attend(q, k, k, log_weights=jnp.zeros((2, 5)))
    with pytest.raises(TypeCheckError, match="'v'"):
        attend(q, k, jnp.zeros((2, 7, 3, 6)))
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
