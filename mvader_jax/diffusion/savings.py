"""Calls of the model that cost less than a whole one, each a branch of the compiled program.

Guidance inside an interval of noise alone (Kynkäänniemi et al. 2024): outside of it only the prompt's half is computed.
Reuse of deep features (DeepCache, Ma et al. 2024): between two whole calls the model's outermost layers alone are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mvader_jax.condition import Condition
from mvader_jax.diffusion.levels import Kept, Levels
from mvader_jax.diffusion.pndm import Denoise

#: (latents [kB, ...], timesteps [kB], Condition of kB rows, deep features [kB, ...] or None) -> (eps [kB, ...], the deep
#: features that it was computed from).
DeepEps: TypeAlias = Callable[
    [jax.Array, jax.Array, Condition, jax.Array | None], tuple[jax.Array, jax.Array]
]


def guides(levels: Levels, interval: tuple[float, float]) -> Bool[np.ndarray, " T"]:
    """Whether guidance acts at each timestep: where low < sigma <= high."""
    low, high = interval
    sigma = sigmas(levels)
    return (low < sigma) & (sigma <= high)


def sigmas(levels: Levels) -> Float64[np.ndarray, " T"]:
    """sqrt((1 - abar) / abar) of every timestep."""
    return np.sqrt((1 - levels.table) / levels.table)


def guided_within(
    guided: Denoise, alone: Denoise, guides: Bool[np.ndarray, " T"], kept: Kept | None = None
) -> Denoise:
    """`guided` at the timesteps that `guides` names, `alone` at the others. kept: what both of them keep."""
    table = jnp.asarray(guides)
    if kept is None:
        return lambda x, t: jax.lax.cond(table[t], guided, alone, x, t)

    def keeping(denoise: Denoise) -> Any:
        def call(x: jax.Array, t: jax.Array, value: Any) -> tuple[jax.Array, Any]:
            kept.value = value
            return denoise(x, t), kept.value

        return call

    def either(x: jax.Array, t: jax.Array) -> jax.Array:
        predicted, kept.value = jax.lax.cond(table[t], keeping(guided), keeping(alone), x, t, kept.value)
        return predicted

    return either


@flax.struct.dataclass
class Deep:
    """Deep features of an earlier call. age: calls since it, and itself; guided: whether it computed those of all k
    conditions, or of the last alone."""

    features: Any  # float [k, B, ...]; None before their shape is known
    age: Int[jax.Array, ""]
    guided: Bool[jax.Array, ""]


class Reuse:
    """Every so many calls the model is computed whole; in between from the deep features of the last whole call.

        reuse = Reuse(model, every=3)
        denoise = reuse.denoise(guided(reuse.eps, ...), alone(reuse.eps, ...), latents, guides)
        sampler(denoise, latents, dataclasses.replace(levels, kept=reuse.kept))

    A call with guidance that follows calls without it is whole too: of the other conditions there are no features.
    """

    def __init__(self, model: DeepEps, every: int) -> None:
        self.kept = Kept(None)
        self._model, self._every = model, every
        # What one traced call of the model is given, and leaves.
        self._given: jax.Array | None = None
        self._left: Any = None

    def eps(self, latents: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        """The model, for the calls that `denoise` makes."""
        predicted, self._left = self._model(latents, t, condition, self._given)
        return predicted

    def denoise(
        self,
        guided: Denoise,
        alone: Denoise,
        latents: Float[jax.Array, "B ..."],
        guides: Bool[np.ndarray, " T"] | None = None,
    ) -> Denoise:
        """Both of `eps`. latents: what the first call will be of. guides: None where guidance acts everywhere."""
        rows = len(latents)

        def whole(denoise: Denoise) -> Any:
            def call(x: jax.Array, t: jax.Array, deep: Deep) -> tuple[jax.Array, Deep]:
                self._given = None
                predicted = denoise(x, t)
                left = self._left.reshape(-1, rows, *self._left.shape[1:])
                features = left if deep.features is None else deep.features.at[-len(left) :].set(left)
                return predicted, Deep(features, jnp.int32(1), jnp.asarray(denoise is guided))

            return call

        def outer(denoise: Denoise) -> Any:
            def call(x: jax.Array, t: jax.Array, deep: Deep) -> tuple[jax.Array, Deep]:
                features = deep.features if denoise is guided else deep.features[-1:]
                self._given = features.reshape(-1, *features.shape[2:])
                return denoise(x, t), dataclasses.replace(deep, age=deep.age + 1)

            return call

        nothing = Deep(None, jnp.int32(self._every), jnp.asarray(False))
        shape = jax.eval_shape(lambda x: whole(guided)(x, jnp.int32(0), nothing)[1].features, latents)
        self.kept.value = dataclasses.replace(nothing, features=jnp.zeros(shape.shape, shape.dtype))
        table = None if guides is None else jnp.asarray(guides)

        def either(x: jax.Array, t: jax.Array) -> jax.Array:
            deep: Deep = self.kept.value
            old = deep.age >= self._every

            def with_guidance(x: jax.Array, t: jax.Array, deep: Deep) -> tuple[jax.Array, Deep]:
                return jax.lax.cond(old | ~deep.guided, whole(guided), outer(guided), x, t, deep)

            def without(x: jax.Array, t: jax.Array, deep: Deep) -> tuple[jax.Array, Deep]:
                return jax.lax.cond(old, whole(alone), outer(alone), x, t, deep)

            if table is None:
                predicted, self.kept.value = with_guidance(x, t, deep)
            else:
                predicted, self.kept.value = jax.lax.cond(table[t], with_guidance, without, x, t, deep)
            return predicted

        return either
