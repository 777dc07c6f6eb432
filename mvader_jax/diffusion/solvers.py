"""DDIM, Euler, DPM-Solver++(2M) and LCM. Coefficients: float64 on the host, one row per step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion.consistency import boundary
from mvader_jax.diffusion.levels import Levels, Rows
from mvader_jax.diffusion.pndm import Denoise


def ddim(
    denoise: Denoise,
    latents: jax.Array,
    levels: Levels,
    eta: float = 0.0,
    keys: jax.Array | None = None,
) -> jax.Array:
    """DDIM (Song et al. 2020, eq. 12 and 16). eta 0: deterministic; 1: ancestral sampling (DDPM).

    keys: [B], a PRNG key per image. Step i of the whole run draws an image's noise from fold_in(its key, i) alone.
    """
    dtype = latents.dtype

    def rows(levels: Levels) -> Rows:
        a, b = levels.alphas[:-1], levels.alphas[1:]
        sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        direction = np.sqrt(np.maximum(1 - b - sigma**2, 0.0))
        indices = np.arange(levels.first, levels.steps, dtype=np.int32)
        numbers = _numbers(dtype, np.sqrt(1 - a), np.sqrt(a), direction, np.sqrt(b), sigma)
        return (_told(levels), indices, *numbers)

    def body(x: jax.Array, step: tuple[jax.Array, ...]) -> jax.Array:
        t, index, noise, signal, noise_after, signal_after, sigma = step
        eps = denoise(x, t).astype(x.dtype)
        x = signal_after * (x - noise * eps) / signal + noise_after * eps
        if keys is not None:
            x = x + sigma * _fresh_noise(keys, index, x)
        return x

    return levels.walk(rows, body, latents)


def euler(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """Euler's method in sigma = sqrt((1 - abar) / abar) (Karras et al. 2022, algorithm 1; k-diffusion).

    State: x / sqrt(abar) = x0 + sigma eps, whose slope in sigma is eps; the model reads it times
    1 / sqrt(sigma^2 + 1). The last step ends at sigma = 0, whatever `set_alpha_to_one` says.
    """
    dtype = latents.dtype

    def sigmas(levels: Levels) -> np.ndarray:
        alphas = levels.alphas[:-1]
        return np.append(np.sqrt((1 - alphas) / alphas), 0.0)

    def rows(levels: Levels) -> Rows:
        sigma = sigmas(levels)
        return (_told(levels), *_numbers(dtype, 1 / np.sqrt(sigma[:-1] ** 2 + 1), np.diff(sigma)))

    def body(x: jax.Array, step: tuple[jax.Array, ...]) -> jax.Array:
        t, scale, change = step
        return x + change * denoise(scale * x, t).astype(x.dtype)

    x = latents * levels.at_start(lambda levels: np.sqrt(sigmas(levels)[0] ** 2 + 1), dtype)
    return levels.walk(rows, body, x)


def dpm_solver_2m(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2).

    Its first step is of first order; so is the last one where the whole run is below 15 steps or it ends at
    alpha-bar 1 (lambda infinite), as in the authors' code and in diffusers.
    """
    dtype = latents.dtype

    def rows(levels: Levels) -> Rows:
        alphas = levels.alphas
        alpha, sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
        with np.errstate(divide="ignore"):
            h = np.diff(np.log(alpha) - np.log(sigma))
        # 1 / (2 r) with r = h_before / h; timesteps that fall together (at 1000 steps) leave h_before 0.
        extrapolate = np.zeros(len(h))
        second = h[:-1] > 0
        if levels.steps < 15 or alphas[-1] == 1.0:
            second[-1:] = False
        extrapolate[1:][second] = h[1:][second] / (2 * h[:-1][second])
        decay, gain = sigma[1:] / sigma[:-1], -alpha[1:] * np.expm1(-h)
        return (_told(levels), *_numbers(dtype, alpha[:-1], sigma[:-1], decay, gain, extrapolate))

    def body(carry: tuple[jax.Array, jax.Array], step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, before = carry
        t, alpha, sigma, decay, gain, extrapolate = step
        data = (x - sigma * denoise(x, t).astype(x.dtype)) / alpha
        return decay * x + gain * (data + extrapolate * (data - before)), data

    return levels.walk(rows, body, (latents, jnp.zeros_like(latents)))[0]


def lcm(denoise: Denoise, latents: jax.Array, levels: Levels, keys: jax.Array | None = None) -> jax.Array:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, algorithm 3): to the picture, and back to
    the noise of the next level, which is fresh.

    keys: as of `ddim`, which may be left out where one step is taken.
    """
    dtype = latents.dtype

    def rows(levels: Levels) -> Rows:
        a, b = levels.alphas[:-1], np.append(levels.alphas[1:-1], 1.0)
        indices = np.arange(levels.first, levels.steps, dtype=np.int32)
        numbers = (np.sqrt(1 - a), np.sqrt(a), *boundary(levels.timesteps), np.sqrt(b), np.sqrt(1 - b))
        return (_told(levels), indices, *_numbers(dtype, *numbers))

    def body(x: jax.Array, step: tuple[jax.Array, ...]) -> jax.Array:
        t, index, noise, signal, skip, out, signal_after, noise_after = step
        clean = (x - noise * denoise(x, t).astype(x.dtype)) / signal
        x = signal_after * (out * clean + skip * x)
        return x if keys is None else x + noise_after * _fresh_noise(keys, index, x)

    return levels.walk(rows, body, latents)


def _told(levels: Levels) -> np.ndarray:
    return levels.timesteps.astype(np.int32)


def _numbers(dtype: jnp.dtype, *columns: np.ndarray) -> Rows:
    return tuple(column.astype(dtype) for column in columns)


def _fresh_noise(keys: jax.Array, step: jax.Array, like: jax.Array) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, step), like.shape[1:], jnp.float32)

    return jax.vmap(one)(keys).astype(like.dtype)
