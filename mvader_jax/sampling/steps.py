"""Pictures drawn a few steps at a time: who calls is told of each, may look at what is there, and may end it.

What `generate` does in one program is done in three here: `begin` embeds the prompts and makes the initial state,
`go_on` takes steps from one state to the next, and the last latents are decoded. Whatever the number of steps, these
are compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Float

from mvader_jax.bounds import PositiveInt
from mvader_jax.diffusion.levels import Levels
from mvader_jax.diffusion.pndm import Denoise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_uint8
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.parallel.processes import first_process, gather_json, gather_rows
from mvader_jax.parallel.sharding import Tree, constrain, shapes_alone
from mvader_jax.sampling.generate import Components, Draws, decode_latents, embedded, finished, sampled
from mvader_jax.sampling.pictures import Pictures
from mvader_jax.sampling.placement import Placement
from mvader_jax.sampling.settings import StaticSettings
from mvader_jax.settings import convert

Carry = TypeVar("Carry")


class Step:
    """A step that was taken. number: 1 to total. A step is one call of the model: of PLMS there is one more than
    `steps`."""

    def __init__(self, number: int, total: int, look: Callable[[], Pictures]) -> None:
        self.number, self.total, self._look = number, total, look

    @functools.cached_property
    def preview(self) -> Pictures:
        """The pictures as the model foresees them at this step; decoded when asked for.

        In several processes all must ask for it together.
        """
        return self._look()

    def __repr__(self) -> str:
        return f"Step({self.number} of {self.total})"


class Cancelled(Exception):
    """The callback returned False. step: the last one that was taken, with its preview."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"the drawing was cancelled after step {step.number} of {step.total}")
        self.step = step


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who is told of a drawing. callback: called with a `Step` after every so many steps and after the last;
    progress: a line on standard error beside it; rows: how many of the pictures are shown."""

    callback: Callable[[Step], object] | None
    every: int
    progress: bool
    rows: int

    @classmethod
    def of(cls, callback: Any, every: Any, progress: Any, rows: int) -> Watch | None:
        """None where nobody is to be told. Raises UserError for what is no callback and no number of steps."""
        if callback is not None and not callable(callback):
            raise UserError(f"callback is {callback!r:.80}; expected a function of a step")
        every, progress = convert(PositiveInt, every, "callback_every"), convert(bool, progress, "progress")
        return cls(callback, every, progress, rows) if progress or callback is not None else None

    def tell(self, step: Step) -> None:
        """Raises Cancelled where the callback of any process returned False, and whatever it raises. Together."""
        problem: BaseException | None = None
        answer: object = None
        try:
            if self.callback is not None:
                answer = self.callback(step)
        except BaseException as error:
            problem = error
        ended = problem is not None or (isinstance(answer, (bool, np.bool_)) and not answer)
        if any(gather_json(ended)):
            raise problem or Cancelled(step)


class Line:
    """How far work is, in one line on standard error that is written over: for terminals and notebooks."""

    def __init__(self, what: str, unit: str, shown: bool) -> None:
        self.what, self.unit, self.shown = what, unit, shown and first_process()
        self._began, self._width = time.monotonic(), 0

    def update(self, done: int, total: int) -> None:
        """So many are done by now."""
        left = (time.monotonic() - self._began) / max(done, 1) * (total - done)
        self._write(f"{self.what}: {done} of {total} {self.unit}, {left:.0f} s left")

    def end(self) -> None:
        """Leaves the line as it is."""
        if self._width:
            self._write("", "\n")

    def _write(self, text: str, last: str = "") -> None:
        if self.shown:
            start = f"\r{text.ljust(self._width)}" if text else ""
            print(start, end=last, file=sys.stderr, flush=True)
            self._width = max(self._width, len(text))


class Steps:
    """The programs that draw in steps; compiled when they are used."""

    def __init__(self, model: ModelConfig, dtype: str, placement: Placement) -> None:
        self.placement = placement
        fixed: dict[str, Any] = {"model": model, "dtype": dtype}
        rows = placement.by_row(4).get("out_shardings", (None,))[0]
        self._begin = jax.jit(functools.partial(begin, **fixed), static_argnames="static")
        self._go_on = jax.jit(functools.partial(go_on, **fixed), static_argnames="static")
        self._look = jax.jit(functools.partial(look, **fixed), out_shardings=rows)
        self._finish = jax.jit(functools.partial(finished, **fixed), **placement.by_row(4, 1))

    def draw(
        self, components: Components, draws: Draws, static: StaticSettings, watch: Watch
    ) -> tuple[jax.Array, jax.Array]:
        """`generate`'s results. Raises as `Watch.tell`, and UserError for a sampler
        whose steps cannot be seen."""
        if not SAMPLERS[static.sampler].walks:
            seen = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.walks)
            raise UserError(f"the sampler {static.sampler} cannot be watched; those that can: {seen}")
        line = Line("drawing", "steps", watch.progress)
        active, unet, vae = self.placement.active, {"unet": components["unet"]}, {"vae": components["vae"]}
        try:
            with active():
                draws, state, calls = self._begin(components, draws, static=static)
                total, done = int(calls), 0
            while True:
                end = min(done + watch.every, total)
                with active():
                    state, latents, clean = self._go_on(
                        unet, draws, state, np.int32(done), np.int32(end), static=static
                    )
                    clean.block_until_ready()
                done = end
                if done:
                    line.update(done, total)
                    watch.tell(Step(done, total, functools.partial(self._pictures, vae, clean, watch.rows)))
                if done == total:
                    with active():
                        return self._finish(vae, latents)
        finally:
            line.end()

    def _pictures(self, components: Components, latents: jax.Array, count: int) -> Pictures:
        with self.placement.active():
            pixels = gather_rows(self._look(components, latents))
        return Pictures(PIL.Image.fromarray(picture) for picture in pixels[:count])


@shapes_alone()
def begin(
    components: Components, draws: Draws, *, model: ModelConfig, static: StaticSettings, dtype: str
) -> tuple[Draws, Tree, jax.Array]:
    """(the draws with their prompts embedded, the sampler's state before its first step, how many steps it takes)."""
    draws = embedded(components, draws, model=model, dtype=jnp.dtype(dtype))
    found: list[tuple[Any, Any]] = []

    def none(calls: Any, one: Callable[[Any, Carry], Carry], state: Carry) -> Carry:
        del one
        found.append((calls, state))
        return state

    sampled(components, draws, model=model, static=static, dtype=dtype, loop=none)
    calls, state = found[0]
    # What sampling starts from is in the state by now.
    return dataclasses.replace(draws, init=None), _by_row(state, draws), jnp.asarray(calls, jnp.int32)


@shapes_alone()
def go_on(
    components: Components,
    draws: Draws,
    state: Tree,
    first: jax.Array,
    end: jax.Array,
    *,
    model: ModelConfig,
    static: StaticSettings,
    dtype: str,
) -> tuple[Tree, Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
    """Steps `first` to `end` from a state: (the state then, its latents, the picture that the last step foresees)."""
    found: list[Any] = []
    foreseen: list[jax.Array] = []

    def seen(denoise: Denoise, levels: Levels) -> Denoise:
        signal, noise = (
            jnp.asarray(part, jnp.float32) for part in (levels.table**0.5, (1 - levels.table) ** 0.5)
        )

        def noted(x: jax.Array, t: jax.Array) -> jax.Array:
            predicted = denoise(x, t)
            eps = levels.noise(lambda *_: predicted)(x, t)
            foreseen.append((x - noise[t] * eps) / signal[t])
            return predicted

        return noted

    def some(calls: Any, one: Callable[[Any, Carry], Carry], _: Carry) -> Any:
        def step(call: Any, now: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            after = one(call, now[0])
            return after, foreseen.pop()

        nothing = jnp.zeros((len(draws.seeds), *static.latent_size, model.require(UNetConfig).in_channels))
        after, clean = jax.lax.fori_loop(first, jnp.minimum(end, calls), step, (state, nothing))
        found.append((after, clean))
        return after

    latents = sampled(components, draws, model=model, static=static, dtype=dtype, seen=seen, loop=some)
    after, clean = found[0]
    return _by_row(after, draws), latents, clean


def look(
    components: Components, latents: Float[jax.Array, "B h w C"], *, model: ModelConfig, dtype: str
) -> jax.Array:
    """Latents -> pictures, uint8 [B, H, W, 3]."""
    return to_uint8(decode_latents(components, latents, model=model, dtype=dtype))


def _by_row(state: Tree, draws: Draws) -> Tree:
    """On a mesh the state lies as its pictures do: divided along the first axis that is as long as they are many."""
    count = len(draws.seeds)

    def one(x: jax.Array) -> jax.Array:
        batch = x.shape.index(count) if count in x.shape else None
        return constrain(x, *("batch" if axis == batch else "activation" for axis in range(x.ndim)))

    return jax.tree.map(one, state)
