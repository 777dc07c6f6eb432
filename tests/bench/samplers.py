"""Every sampler at 10, 20, 50 steps and guidance 3, 8, read back: python tests/bench/samplers.py samplers.json [--count 100]

Held-out scenes as told, as shown, and with another colour told beside the picture (no weight), drawn from the same
noise by each sampler and read by analysis. All prompts at all scales are one batch, and the UNet is compiled once for all
samplers and steps, so that a GPU draws 500 scenes in minutes. Every row is written as soon as it is measured, and printed
at the end: shares in percent. What is not a sampler of the package (`--candidates`) are changes of PLMS, to see what is
wrong with it at high guidance.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.condition import Condition, take
from mvader_jax.data.scenes.judge import SCORES, compare, read_scene
from mvader_jax.data.scenes.world import Scene, render
from mvader_jax.diffusion import pndm
from mvader_jax.diffusion.levels import Levels
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.samplers import SAMPLERS, Sampler
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.paper.curves import TASKS, Curves, held_out
from mvader_jax.paper.evaluate import text_prompts
from mvader_jax.prompt.elements import Image, Prompt
from mvader_jax.sampling.generate import Draws, Prompted, denoiser, embedded, finished
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings

#: What a table shows of each task.
COLUMNS = {
    "text": ("shape", "all"),
    "variation": ("shape", "all"),
    "change": ("text_color", "image_shape", "both"),
}


def of_order(order: int) -> Sampler:
    """PLMS that stops at a lower order."""

    def solve(denoise: Any, latents: jax.Array, levels: Levels) -> jax.Array:
        return pndm._run(denoise, latents, levels, lambda times: pndm._multistep(times, order))

    return dataclasses.replace(SAMPLERS["plms"], solve=solve)


def clipped(at: float) -> Sampler:
    """PLMS whose every foreseen picture is clipped, in latents."""

    def solve(denoise: Any, latents: jax.Array, levels: Levels) -> jax.Array:
        table = jnp.asarray(levels.table, jnp.float32)

        def within(x: jax.Array, t: jax.Array) -> jax.Array:
            signal, noise = jnp.sqrt(table[t]), jnp.sqrt(1 - table[t])
            clean = jnp.clip((x - noise * denoise(x, t)) / signal, -at, at)
            return (x - signal * clean) / noise

        return pndm.plms(within, latents, levels)

    return dataclasses.replace(SAMPLERS["plms"], solve=solve)


def limited(limit: float) -> Sampler:
    """`plms_limited` of another limit."""
    return dataclasses.replace(SAMPLERS["plms"], solve=functools.partial(pndm.plms_limited, limit=limit))


CANDIDATES = {
    "plms, order 2": of_order(2),
    "plms, order 3": of_order(3),
    "plms, clipped at 3": clipped(3.0),
    "plms, limit 1": limited(1.0),
    "plms, limit 0.25": limited(0.25),
}


class Bench:
    """The prompts, embedded once, a row for each task, scene and scale; and the one compiled UNet."""

    def __init__(self, pipe: Pipeline, count: int, scales: list[float], batch: int) -> None:
        self.pipe, self.count, self.scales = pipe, count, scales
        self.scenes = held_out(count)
        self.changes = TASKS["change"].asks(count, Curves())
        prompts: dict[str, list[Prompt]] = {
            "text": text_prompts(self.scenes),
            "variation": [Prompt((Image(render(scene)),)) for scene in self.scenes],
            "change": [one.prompt(1.0, "both") for one in self.changes],
        }
        batches = {name: pipe.bundle.to_batch(each) for name, each in prompts.items()}
        length = max(each.token_ids.shape[1] for each in batches.values())
        batches = {name: pipe.bundle.to_batch(each, length=length) for name, each in prompts.items()}
        conditions = [pipe.embed_batch(each) for each in batches.values()]
        whole = jax.tree.map(lambda *rows: jnp.concatenate(rows), *conditions)
        self.rows = [(task, i, g) for g in scales for task in COLUMNS for i in range(count)]
        self.batch = min(batch, len(self.rows))
        null = pipe.embed_batch(pipe.bundle.to_batch([None]))
        self.parts = [self._draws(whole, null, at) for at in range(0, len(self.rows), self.batch)]
        static = SamplingSettings().static(pipe.model)
        self.shape = (*static.latent_size, pipe.model.require(UNetConfig).in_channels)
        fixed: dict[str, Any] = {"model": pipe.model, "dtype": pipe.dtype}

        @jax.jit
        def predict(components: Any, draws: Draws, x: jax.Array, t: jax.Array) -> jax.Array:
            levels = SAMPLERS["ddim"].levels(pipe.model.require(ScheduleConfig), 50)
            denoise, _ = denoiser(
                components, draws, x, levels, model=pipe.model, static=static, dtype=jnp.dtype(pipe.dtype)
            )
            return denoise(x, t)

        self._predict = predict
        self._finished = jax.jit(functools.partial(finished, **fixed))
        prepare = jax.jit(functools.partial(embedded, model=pipe.model, dtype=jnp.dtype(pipe.dtype)))
        self.parts = [prepare(pipe.bundle.components, part) for part in self.parts]

    def _draws(self, whole: Condition, null: Condition, at: int) -> Draws:
        chosen = [self.rows[min(i, len(self.rows) - 1)] for i in range(at, at + self.batch)]
        tasks = list(COLUMNS)
        prompts = take(whole, jnp.asarray([tasks.index(task) * self.count + i for task, i, _ in chosen]))
        # Picture number i of the seed, whatever the task and the scale.
        indices = np.asarray([i for _, i, _ in chosen], np.int32)
        draws = Draws.of(
            SamplingSettings(), Prompted(prompts), Prompted(null, np.zeros_like(indices)), indices
        )
        return dataclasses.replace(draws, guidance_scale=np.asarray([g for *_, g in chosen], np.float32))

    def draw(self, sampler: Sampler, steps: int) -> np.ndarray:
        """A picture for each row, uint8."""
        pictures = []
        levels = sampler.levels(self.pipe.model.require(ScheduleConfig), steps)
        levels = dataclasses.replace(levels, loop=one_by_one)
        components = self.pipe.bundle.components
        for draws in self.parts:
            noise = initial_noise(draws.seeds, draws.indices, self.shape)
            denoise = functools.partial(self._predict, components, draws)
            latents = sampler(denoise, noise, levels)
            pixels, finite = self.finish(latents)
            pictures.append(np.where(np.asarray(finite)[:, None, None, None], np.asarray(pixels), 0))
        return np.concatenate(pictures)[: len(self.rows)]

    def finish(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents as pictures, uint8, and whether each means anything."""
        pixels, finite = self._finished(self.pipe.bundle.components, latents)
        return pixels, finite

    def scored_of(self, pictures: np.ndarray) -> dict[str, float]:
        """`scored` of the one scale that there is."""
        (scale,) = self.scales
        return self.scored(scale, read_all(pictures))

    def scored(self, scale: float, read: list[Scene]) -> dict[str, float]:
        """Of the pictures of one scale, as read: what COLUMNS names, in percent."""
        found: dict[str, float] = {}
        for number, task in enumerate(COLUMNS):
            start = (self.scales.index(scale) * len(COLUMNS) + number) * self.count
            scenes = read[start : start + self.count]
            if task == "change":
                rows = [one.right(scene) for one, scene in zip(self.changes, scenes, strict=True)]
            else:
                rows = [compare(truth, scene) for truth, scene in zip(self.scenes, scenes, strict=True)]
                rows = [{**row, "all": np.mean([row[name] for name in SCORES])} for row in rows]
            for column in COLUMNS[task]:
                found[f"{task} {column}"] = 100 * float(np.mean([row[column] for row in rows]))
        return found


def one_by_one(calls: Any, one: Callable[[Any, Any], Any], carry: Any) -> Any:
    """The loop of a walk outside of any program: each call of the UNet is the same one."""
    for call in range(int(calls)):
        carry = one(jnp.int32(call), carry)
    return carry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the numbers as JSON, written after every sampler")
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--count", type=int, default=500, help="scenes of each task")
    parser.add_argument(
        "--samplers", default=",".join(name for name in SAMPLERS if not SAMPLERS[name].distilled)
    )
    parser.add_argument("--candidates", action="store_true", help="also changes of PLMS")
    parser.add_argument("--steps", default="10,20,50")
    parser.add_argument("--scales", default="3,8")
    parser.add_argument("--batch", type=int, default=3000, help="pictures drawn at a time")
    args = parser.parse_args()
    scales, steps = [float(x) for x in args.scales.split(",")], [int(x) for x in args.steps.split(",")]
    samplers = {name: SAMPLERS[name] for name in args.samplers.split(",")} if args.samplers else {}
    samplers |= CANDIDATES if args.candidates else {}
    began = time.monotonic()
    bench = Bench(Pipeline.load(args.bundle, cache=True), args.count, scales, args.batch)
    rows: list[dict[str, Any]] = []
    # Read beside the drawing, by processes that know nothing of JAX's.
    workers = max(1, (os.cpu_count() or 2) - 1)
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: list[tuple[str, int, list[Any]]] = []
        for count, (name, sampler) in itertools.product(steps, samplers.items()):
            pictures = bench.draw(sampler, count)
            parts = [pictures[at : at + 50] for at in range(0, len(pictures), 50)]
            waiting.append((name, count, [pool.submit(read_all, part) for part in parts]))
            print(f"{time.monotonic() - began:6.0f} s  drawn: {name}, {count} steps", flush=True)
        for name, count, futures in waiting:
            read = [scene for future in futures for scene in future.result()]
            calls = samplers[name].calls(count)
            rows += [
                {"sampler": name, "steps": count, "calls": calls, "scale": g, **bench.scored(g, read)}
                for g in scales
            ]
            said = {"count": args.count, "device": jax.devices()[0].device_kind, "rows": rows}
            args.out.write_text(json.dumps(said, indent=1) + "\n")
    print(f"{time.monotonic() - began:6.0f} s  read\n\n{as_markdown(rows)}")


def read_all(pictures: np.ndarray) -> list[Scene]:
    return [read_scene(picture) for picture in pictures]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A row for each sampler, steps and scale."""
    names = [name for name in rows[0] if name not in ("sampler", "steps", "calls", "scale")]
    lines = ["| sampler | steps | guidance | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for row in sorted(rows, key=lambda row: (row["scale"], row["steps"])):
        values = " | ".join(f"{row[name]:.1f}" for name in names)
        lines.append(f"| {row['sampler']} | {row['steps']} | {row['scale']:g} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
