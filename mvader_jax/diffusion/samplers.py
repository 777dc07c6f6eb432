"""Samplers: pure functions `(denoise, latents, schedule, steps) -> latents`, whole inside `jit`.

`denoise(x, t)` is the model's noise prediction with everything else closed over; t is a traced int32 [].
State is float32 at least, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion.schedule import Schedule, leading_timesteps

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Sampler = Callable[[Denoise, jax.Array, Schedule, int], jax.Array]

#: Adams-Bashforth coefficients by order, newest first (PNDM eq. 12; Liu et al. 2022).
_ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def transfer(
    schedule: Schedule, x: jax.Array, eps: jax.Array, t: jax.Array, previous: jax.Array
) -> jax.Array:
    """phi(x, eps, t, t - d): the deterministic step of PNDM eq. 11 (DDIM's, rearranged)."""
    a, b = schedule.alpha(t), schedule.alpha(previous)
    scale = a * jnp.sqrt(1 - b) + jnp.sqrt(a * (1 - a) * b)
    return jnp.sqrt(b / a) * x - (b - a) / scale * eps


def plms(denoise: Denoise, latents: jax.Array, schedule: Schedule, steps: int) -> jax.Array:
    """PNDM as Stable Diffusion ran it (PLMS): `steps` + 1 model calls.

    The first step is taken twice: an Euler step to t - d, then again from the start with the mean of
    both predictions (PNDM eq. 22 with a second-order start); the second prediction is not kept in the
    history. Later steps are Adams-Bashforth of order 2, 3, then 4.
    """
    stride = schedule.config.num_train_steps // steps
    ladder = leading_timesteps(schedule.config, steps)
    # Call c evaluates the model at called[c] and moves the latents from t to previous.
    called = np.concatenate([ladder[:1], ladder[:1] - stride, ladder[1:]])
    called[1] = ladder[1] if steps > 1 else ladder[0] - stride
    start = np.concatenate([ladder[:1], ladder[:1], ladder[1:]])
    previous = start - stride
    order = np.minimum(np.concatenate([[0, 0], np.arange(1, steps)]), 3)
    keep = np.ones(steps + 1, bool)
    keep[1] = False
    dtype = jnp.promote_types(latents.dtype, jnp.float32)
    x = latents.astype(dtype)

    def body(carry: tuple[jax.Array, jax.Array, jax.Array], call: tuple[jax.Array, ...]) -> tuple:
        x, origin, history = carry
        t, source, target, coefficients, keeps, averages = call
        eps = denoise(x, jnp.maximum(t, 0)).astype(dtype)
        multistep = jnp.tensordot(coefficients, jnp.concatenate([eps[None], history[:3]]), axes=1)
        direction = jnp.where(averages, (eps + history[0]) / 2, multistep)
        # The averaged second call starts again from where the first one did.
        base = jnp.where(averages, origin, x)
        kept = jnp.where(keeps, jnp.concatenate([eps[None], history[:3]]), history)
        return (transfer(schedule, base, direction, source, target), x, kept), None

    calls = (
        jnp.asarray(called, jnp.int32),
        jnp.asarray(start, jnp.int32),
        jnp.asarray(previous, jnp.int32),
        jnp.asarray(_ADAMS_BASHFORTH[order], dtype),
        jnp.asarray(keep),
        jnp.asarray(np.arange(steps + 1) == 1),
    )
    history = jnp.zeros((4, *x.shape), dtype)
    (x, _, _), _ = jax.lax.scan(body, (x, x, history), calls)
    return x


SAMPLERS: dict[str, Sampler] = {"plms": plms}
