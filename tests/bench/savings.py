"""What saved calls cost in pictures: python tests/bench/savings.py savings.json [--count 100] [--sampler ddim] [--scale 8]

Held-out scenes as told and as shown, drawn from the same noise whole and with guidance in an interval, with reuse of deep
features, and with both. Of each: the UNet's FLOPs, those of the embedded model's and of Stable Diffusion 1.4's, to the
whole run's; the mean difference of a pixel to the whole run's pictures in levels of 255, PSNR and SSIM (Wang et al. 2004)
of the same; and the attributes that are read right. One program of the UNet serves all rows.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from calls import ROWS, calls
from samplers import Bench, one_by_one

from mvader_jax.diffusion.guidance import alone, guided
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.savings import Reuse, guides
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import ALWAYS
from mvader_jax.train.flops import count_flops

#: (interval, reuse) of the table's rows, the whole run first.
SAVINGS: list[tuple[tuple[float, float], int]] = [
    (ALWAYS, 1),
    ((0.0, 5.0), 1),
    ((0.3, ALWAYS[1]), 1),
    ((0.3, 5.0), 1),
    ((0.6, 3.0), 1),
    (ALWAYS, 2),
    (ALWAYS, 3),
    (ALWAYS, 5),
    ((0.3, ALWAYS[1]), 2),
    ((0.3, ALWAYS[1]), 3),
]


class Savings:
    """The prompts of a `Bench`, and a program of the UNet that takes the interval and the reuse as numbers."""

    def __init__(self, bench: Bench, sampler: str, steps: int) -> None:
        self.bench, self.sampler, self.steps = bench, SAMPLERS[sampler], steps
        pipe = bench.pipe
        self.levels = self.sampler.levels(pipe.model.schedule, steps)
        unet = UNet(pipe.model.require(UNetConfig), dtype=jnp.dtype(pipe.dtype))

        def reusing(params: Any, draws: Any, x: jax.Array, where: jax.Array, every: jax.Array) -> Any:
            def model(*inputs: Any) -> Any:
                predicted, left = unet.apply({"params": params}, *inputs, mutable=["intermediates"])
                return predicted, next(iter(jax.tree.leaves(left)), None)

            reuse = Reuse(model, every)
            condition, null = (kind.prompts for kind in (draws.prompt, draws.base))
            null = jax.tree.map(lambda y: y[draws.base.rows], null)
            whole = guided(reuse.eps, condition, null, draws.guidance_scale)
            return reuse.denoise(whole, alone(reuse.eps, condition), x, where), reuse.kept

        @jax.jit
        def begin(params: Any, draws: Any, x: jax.Array, every: jax.Array) -> Any:
            return reusing(params, draws, x, jnp.ones(len(self.levels.table), bool), every)[1].value

        @jax.jit
        def call(params: Any, draws: Any, x: Any, t: Any, kept: Any, where: Any, every: Any) -> Any:
            denoise, memory = reusing(params, draws, x, where, every)
            memory.value = kept
            return denoise(x, t), memory.value

        self._begin, self._call = begin, call

    def draw(self, interval: tuple[float, float], every: int) -> np.ndarray:
        """A picture for each row of the bench."""
        pictures, bench = [], self.bench
        params = bench.pipe.bundle.components["unet"]
        where, levels = (
            jnp.asarray(guides(self.levels, interval)),
            dataclasses.replace(self.levels, loop=one_by_one),
        )
        for draws in bench.parts:
            noise = initial_noise(draws.seeds, draws.indices, bench.shape)
            kept = self._begin(params, draws, noise, jnp.int32(every))

            def denoise(x: jax.Array, t: jax.Array, draws: Any = draws) -> jax.Array:
                nonlocal kept
                predicted, kept = self._call(params, draws, x, t, kept, where, jnp.int32(every))
                return predicted

            latents = self.sampler(denoise, noise, levels)
            pictures.append(np.asarray(bench.finish(latents)[0]))
        return np.concatenate(pictures)[: len(bench.rows)]

    def kinds(self, interval: tuple[float, float], every: int) -> collections.Counter[str]:
        """How many calls of each of `calls.ROWS` a run makes."""
        told: list[int] = []

        def noted(x: jax.Array, t: jax.Array) -> jax.Array:
            told.append(int(t))
            return x

        self.sampler(noted, jnp.zeros((1, 1)), dataclasses.replace(self.levels, loop=one_by_one))
        found: collections.Counter[str] = collections.Counter()
        where, age, both = guides(self.levels, interval), every, False
        for t in told:
            whole = age >= every or (where[t] and not both)
            age, both = (1, bool(where[t])) if whole else (age + 1, both)
            found[ROWS[(1 if where[t] else 2) if whole else (3 if where[t] else 4)]] += 1
        return found


def flops(unet: UNetConfig, length: int) -> dict[str, float]:
    """Of each of `calls.ROWS`."""
    return {
        what: count_flops(jax.make_jaxpr(f)(*shapes)) for what, f, shapes in calls(unet, length, "float32")
    }


def psnr(pictures: np.ndarray, whole: np.ndarray) -> float:
    """Mean over pictures, in dB; of equal ones 99."""
    errors = np.mean((pictures.astype(float) - whole) ** 2, axis=(1, 2, 3))
    return float(np.mean(np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(errors, 1e-12)))))


def ssim(pictures: np.ndarray, whole: np.ndarray) -> float:
    """Structural similarity of the grey pictures, Gaussian windows of 11 pixels; mean over pictures."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    size = whole.shape[1]
    rows = np.stack(
        [np.concatenate([np.zeros(i), taps / taps.sum(), np.zeros(size - 11 - i)]) for i in range(size - 10)]
    )

    def blurred(x: np.ndarray) -> np.ndarray:
        return rows @ x @ rows.T

    grey = np.array([0.299, 0.587, 0.114])
    a, b = pictures @ grey, whole @ grey
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def measured(
    savings: Savings, tasks: tuple[str, ...], say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row for each of SAVINGS."""
    bench = savings.bench
    costs = {
        "tiny": flops(bench.pipe.model.require(UNetConfig), 24),
        "sd14": flops(dataclasses.replace(UNetConfig.sd14(), cross_attention_dim=4096), 144),
    }
    whole: np.ndarray | None = None
    for interval, every in SAVINGS:
        pictures = savings.draw(interval, every)
        whole = pictures if whole is None else whole
        used = savings.kinds(interval, every)
        row: dict[str, Any] = {"interval": list(interval), "reuse": every}
        for name, each in costs.items():
            full = sum(used.values()) * each[ROWS[1]]
            row[f"flops {name}"] = sum(count * each[what] for what, count in used.items()) / full
        row["level"] = float(np.mean(np.abs(pictures.astype(float) - whole)))
        row["psnr"], row["ssim"] = psnr(pictures, whole), ssim(pictures, whole)
        row |= {name: value for name, value in bench.scored_of(pictures).items() if name.split()[0] in tasks}
        say(f"{interval}, reuse {every}")
        yield row


def as_markdown(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name not in ("interval", "reuse")]
    lines = ["| guidance in | reuse | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        low, high = row["interval"]
        shown = (
            "everywhere" if (low, high) == ALWAYS else f"{low:g},{'' if high == ALWAYS[1] else f'{high:g}'}"
        )
        values = " | ".join(
            f"{row[name]:.3f}" if name.startswith(("flops", "ssim")) else f"{row[name]:.1f}" for name in names
        )
        lines.append(f"| {shown} | {row['reuse']} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=1500)
    args = parser.parse_args()
    began = time.monotonic()
    bench = Bench(Pipeline.load(args.bundle, cache=True), args.count, [args.scale], args.batch)
    savings, rows = Savings(bench, args.sampler, args.steps), []
    say = functools.partial(print, flush=True)
    for row in measured(savings, ("text", "variation"), say):
        rows.append(row)
        settings = {name: getattr(args, name) for name in ("count", "sampler", "steps", "scale")}
        args.out.write_text(
            json.dumps({**settings, "device": jax.devices()[0].device_kind, "rows": rows}, indent=1)
        )
        say(f"{time.monotonic() - began:6.0f} s")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
