"""The noise levels that a run visits: which timesteps, spaced how, and the alpha-bar of each.

levels = levels_of(config, 50)            # 50 steps, spaced as the schedule says
levels[20:]                               # img2img: the last 30 of them
levels.late(start)                        # the same, start a traced number: one program for every strength
levels.noised(latents, noise)             # what the first of these steps begins with
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from mvader_jax.diffusion.schedule import (
    Prediction,
    ScheduleConfig,
    Spacing,
    add_noise,
    noise_of_velocity,
)
from mvader_jax.errors import UserError

#: The timestep at which the last step ends: below all of the schedule's lies the picture itself.
PICTURE = -1

Carry = TypeVar("Carry")
#: A row of numbers for each model call: host arrays [calls], or [calls, ...].
Rows = tuple[np.ndarray, ...]
#: Goes through model calls: (their number, (number of a call, carry) -> carry, carry) -> carry.
Loop = Callable[[Any, Callable[[Any, Any], Any], Any], Any]


@dataclasses.dataclass(eq=False)
class Kept:
    """What a model keeps from one of its calls to the next: a tree of arrays, read and set while a call is traced.

    `Levels.walk` carries it through its loop, beside the sampler's own state.
    """

    value: Any


class Together(Kept):
    """What several parts of a model keep."""

    def __init__(self, *parts: Kept) -> None:
        self.parts = parts

    @property
    def value(self) -> Any:
        return tuple(part.value for part in self.parts)

    @value.setter
    def value(self, values: Any) -> None:
        for part, value in zip(self.parts, values, strict=True):
            part.value = value


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The levels at which a run's steps begin; host values, constants of the program that they shape.

    timesteps: descending; what the model is told at each.
    table: alpha-bar of every timestep 0 to T - 1, for levels between the steps' too.
    final: alpha-bar where the last step ends.
    first: the number of steps of the whole run that come before these.
    start: a traced number of steps to leave out beside those; only `walk`, `at_start` and `noised` know it.
    prediction_type: what the model predicts.
    loop: what `walk` goes through the calls with, in place of going through all of them.
    kept: what the model keeps between its calls, if anything.
    """

    timesteps: Int64[np.ndarray, " n"]
    table: Float64[np.ndarray, " T"]
    final: float
    first: int = 0
    start: Int[jax.Array, ""] | None = None
    prediction_type: Prediction = "epsilon"
    loop: Loop | None = None
    kept: Kept | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, steps: slice) -> Levels:
        """The run without its first steps. Raises ValueError for a slice that is not `[start:]`."""
        start, stop, stride = steps.indices(len(self))
        if (stop, stride) != (len(self), 1):
            raise ValueError("only first steps can be left out of a run: levels[start:]")
        return dataclasses.replace(self, timesteps=self.timesteps[start:], first=self.first + start)

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.first + len(self)

    @property
    def alphas(self) -> Float64[np.ndarray, " {len(self)+1}"]:
        """alpha-bar at which each step begins, then where the last one ends."""
        return self.alpha(np.append(self.timesteps, PICTURE))

    def alpha(self, timesteps: Int[np.ndarray, " *n"]) -> Float64[np.ndarray, " *n"]:
        """alpha-bar at timesteps; `final` at PICTURE."""
        return np.where(timesteps < 0, self.final, self.table[np.maximum(timesteps, 0)])

    def noised(
        self, latents: Float[jax.Array, " B *dims"], noise: Float[jax.Array, " B *dims"]
    ) -> Float[jax.Array, " B *dims"]:
        """Clean latents with the noise that the first step begins with; unchanged where no step is left."""
        if not len(self):
            return latents
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return add_noise(latents, noise, self.at_start(_first_alpha, dtype))

    def late(self, start: Int[jax.Array, ""]) -> Levels:
        """`levels[start:]`, start a traced number of 0 to len(levels)."""
        return dataclasses.replace(self, start=start)

    def at_start(self, value: Callable[[Levels], float], dtype: jnp.dtype) -> Float[jax.Array, ""]:
        """A number that the levels determine."""
        if self.start is None:
            return jnp.asarray(value(self), dtype)
        return jnp.asarray([value(late) for late in self._every_start()], dtype)[self.start]

    def walk(
        self, rows: Callable[[Levels], Rows], body: Callable[[Carry, tuple], Carry], carry: Carry
    ) -> Carry:
        """`carry = body(carry, row)` over the rows of these levels: the loop of every sampler.

        rows: the host's work, a row for each model call. With a traced start the rows of every start are
        constants of the program, which runs through those of its own: no step costs that is left out.
        """
        if self.kept is not None:
            inner, kept = body, self.kept

            def body_and_kept(carry: tuple[Carry, Any], row: tuple) -> tuple[Carry, Any]:
                state, kept.value = carry
                return inner(state, row), kept.value

            whole = dataclasses.replace(self, kept=None)
            carry, kept.value = whole.walk(rows, body_and_kept, (carry, kept.value))
            return carry
        if self.start is None and self.loop is None:
            return jax.lax.scan(lambda carry, row: (body(carry, row), None), carry, _constants(rows(self)))[0]
        runs = [rows(late) for late in ([self] if self.start is None else self._every_start()[:-1])]
        table, numbers, counts = _merged(runs)
        start = 0 if self.start is None else self.start
        columns, which = _constants(table), jnp.asarray(numbers)[start]

        def one(call: jax.Array, carry: Carry) -> Carry:
            return body(carry, tuple(column[which[call]] for column in columns))

        loop = self.loop or partial(jax.lax.fori_loop, 0)
        return loop(jnp.asarray(counts)[start], one, carry)

    def noise(self, predict: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        """The model's prediction (x, t int32 []) as one of the noise, which is what samplers step along."""
        if self.prediction_type == "epsilon":
            return predict
        table = jnp.asarray(self.table, jax.dtypes.canonicalize_dtype(jnp.float64))

        def of_velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            return noise_of_velocity(x, predict(x, t).astype(x.dtype), table[t].astype(x.dtype))

        return of_velocity

    def _every_start(self) -> list[Levels]:
        whole = dataclasses.replace(self, start=None)
        return [whole[start:] for start in range(len(self) + 1)]


def _first_alpha(levels: Levels) -> float:
    return float(levels.alphas[0]) if len(levels) else 1.0


def _constants(rows: Rows) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(column) for column in rows)


def _merged(
    runs: list[Rows],
) -> tuple[Rows, Int[np.ndarray, " starts calls"], Int[np.ndarray, " starts"]]:
    """Runs as (the rows that differ, the number of each run's rows among them, how many rows each has).

    One run more, of no rows, stands at the end: the start at which no step is left.
    """
    columns = tuple(np.concatenate(column) for column in zip(*runs, strict=True))
    flat = [np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8) for column in columns]
    _, first, number = np.unique(np.concatenate(flat, 1), axis=0, return_index=True, return_inverse=True)
    counts = np.array([*(len(run[0]) for run in runs), 0], np.int32)
    numbers = np.zeros((len(counts), counts.max()), np.int32)
    numbers[np.arange(counts.max()) < counts[:, None]] = number.reshape(-1)
    return tuple(column[first] for column in columns), numbers, counts


def levels_of(
    config: ScheduleConfig,
    steps: int,
    spacing: Spacing = "leading",
    *,
    endpoint: bool = False,
    alpha_later: int = 0,
) -> Levels:
    """The levels of a whole run of `steps` steps.

    spacing: where the schedule names none. endpoint: see `timesteps_of`. alpha_later: how many timesteps
    after what the model is told alpha-bar is taken; the schedule's `steps_offset`, which does the same to
    the model, is then left out. Raises UserError as `check_steps`.
    """
    if alpha_later:
        config = dataclasses.replace(config, steps_offset=0)
    table = config.alphas_cumprod()
    return Levels(
        timesteps_of(config, steps, config.spacing or spacing, endpoint=endpoint),
        table[np.minimum(np.arange(len(table)) + alpha_later, len(table) - 1)],
        1.0 if config.set_alpha_to_one else float(table[0]),
        prediction_type=config.prediction_type,
    )


def timesteps_of(
    config: ScheduleConfig, steps: int, spacing: Spacing, *, endpoint: bool = False
) -> Int64[np.ndarray, " {steps}"]:
    """The timesteps of `steps` sampling steps of a schedule of T, descending.

    leading: multiples of T // steps plus `steps_offset` (as Stable Diffusion 1.4 was released). trailing:
    T - 1 and every T / steps below it. linspace: even from T - 1 to 0; both rounded to whole timesteps.
    All three are diffusers' (there Euler's linspace stays fractional). A timestep past the schedule's end,
    where the offset leads at `steps` = T, is its last.

    endpoint: leading and linspace count the picture as one more level, after the last timestep, as
    DPM-Solver's do. Raises UserError as `check_steps`.
    """
    check_steps(config, steps)
    total, count = config.num_train_steps, steps + endpoint
    if spacing == "trailing":
        spaced = np.round(total - np.arange(steps) * (total / steps)) - 1
    elif spacing == "linspace":
        spaced = np.linspace(0, total - 1, count).round()[::-1][:steps]
    else:
        spaced = (np.arange(count) * max(total // count, 1) + config.steps_offset)[::-1][:steps]
    return np.clip(spaced, 0, total - 1).astype(np.int64)


def consistency_timesteps(config: ScheduleConfig) -> Int64[np.ndarray, " original_steps"]:
    """The timesteps that a model is distilled at (Luo et al. 2023), ascending: every T // original_steps from the
    first of so many on, as diffusers' LCMScheduler has them."""
    return np.arange(1, config.original_steps + 1) * (config.num_train_steps // config.original_steps) - 1


def consistency_levels(config: ScheduleConfig, steps: int) -> Levels:
    """The levels of a run of a distilled model: even among `consistency_timesteps`, from the noisiest on.

    Raises UserError for more steps than these.
    """
    if not 1 <= steps <= config.original_steps:
        raise UserError(
            f"steps is {steps}; accepted are 1 to {config.original_steps} of a model distilled to few steps"
        )
    times = consistency_timesteps(config)[::-1]
    chosen = np.floor(np.linspace(0, len(times), steps, endpoint=False)).astype(np.int64)
    return Levels(times[chosen], config.alphas_cumprod(), 1.0, prediction_type=config.prediction_type)


def check_steps(config: ScheduleConfig, steps: int) -> None:
    """The one rule for step counts: 1 to the schedule's length. Raises UserError otherwise."""
    if not 1 <= steps <= config.num_train_steps:
        raise UserError(f"steps is {steps}; accepted are 1 to {config.num_train_steps}")
