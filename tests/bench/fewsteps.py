"""Pictures a second of four steps: python tests/bench/fewsteps.py [--bundle tiny] [--batches 1,8,32]

Three ways to draw the same prompt take turns in one process, on the same cores, in float32:

- `few`: our `lcm`, 4 calls of the UNet a picture;
- `whole`: our default sampler, 50 guided steps, of the UNet that the other learnt from;
- `diffusers`: its own latent-consistency pipeline with the weights of `few` as our converter exports them, 4 steps.

All are given the prompt's hidden states, so that UNet, scheduler and autoencoder are what is timed, and give uint8 arrays
back. The largest difference between the pictures of `few` and `diffusers` from the same noise is printed. A bundle without
a few-step UNet gets an untaught one, its own UNet with the input for guidance: the speed is the same. A round draws with
each way once; printed are each way's median seconds, and of `whole / few` and `diffusers / few` the median over rounds with
the least and the most, on the clock and in processor time, which other work on the machine changes less. Ours has a device
a core and one thread each where the batch divides, theirs as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

THREADS = len(os.sched_getaffinity(0))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers.schedulers import scheduling_lcm  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from twin import FewStepTwin  # noqa: E402

from mvader_jax.condition import Condition  # noqa: E402
from mvader_jax.diffusion.noise import initial_noise, sampler_keys  # noqa: E402
from mvader_jax.models.components import init_component  # noqa: E402
from mvader_jax.models.unet import UNetConfig  # noqa: E402
from mvader_jax.parallel.mesh import open_mesh  # noqa: E402
from mvader_jax.parallel.sharding import replicated  # noqa: E402
from mvader_jax.sampling.generate import Draws, Prompted  # noqa: E402
from mvader_jax.sampling.pipeline import Pipeline  # noqa: E402
from mvader_jax.sampling.settings import FAST, SamplingSettings  # noqa: E402
from mvader_jax.storage.bundle import Bundle, load_bundle  # noqa: E402
from mvader_jax.storage.programs import compilation_cache  # noqa: E402
from mvader_jax.train.objectives import Distillation  # noqa: E402

PROMPT = "a large solid red circle on the left"
Ways = dict[str, Callable[[], np.ndarray]]


def with_student(bundle: Bundle) -> Bundle:
    """The bundle, with a few-step UNet that was taught nothing where it has none."""
    if "unet_fast" in bundle.components:
        return bundle
    model = Distillation().extended(bundle.model)
    student = init_component(model, "unet_fast", jax.random.key(0), None, bundle.components)
    return dataclasses.replace(bundle, model=model, components={**bundle.components, "unet_fast": student})


class Bench:
    """mesh: what divides a batch of ours; None for one device. whole_steps: of the sampler that `few` is compared with."""

    def __init__(self, bundle: Bundle, mesh: Mesh | None, whole_steps: int = 50) -> None:
        bundle = with_student(bundle)
        own = {name: tree for name, tree in bundle.components.items() if name != "unet_fast"}
        bundles = {"few": bundle.fast(), "whole": dataclasses.replace(bundle, components=own)}
        self.settings = {
            "few": SamplingSettings().changed(**FAST),
            "whole": SamplingSettings(steps=whole_steps),
        }
        self.single = {name: Pipeline(one) for name, one in bundles.items()}
        self.divided = self.single
        if mesh is not None:
            place = replicated(mesh)
            copies = {
                name: dataclasses.replace(one, components=jax.device_put(one.components, place))
                for name, one in bundles.items()
            }
            self.divided = {name: Pipeline(one, mesh=mesh) for name, one in copies.items()}
        self.twin = FewStepTwin(bundles["few"], THREADS)
        self.prompt, self.null = (self.told(one) for one in (PROMPT, None))
        unet = bundle.model.require(UNetConfig)
        self.shape = (unet.sample_size, unet.sample_size, unet.in_channels)

    def told(self, prompt: str | None) -> Condition:
        """What the prompt is to the UNet, without padding; [1, S, D]."""
        row = self.single["whole"].embed(prompt)
        there = np.asarray(row.log_weights[0]) > -1e8
        hidden = np.asarray(row.hidden, np.float32)[:, there]
        return Condition(hidden, np.zeros(hidden.shape[:2], np.float32))

    def ways(self, batch: int) -> Ways:
        seeds, indices = np.zeros(batch, np.uint32), np.arange(batch, dtype=np.int32)
        noise = np.asarray(initial_noise(seeds, indices, self.shape))

        def ours(name: str) -> Callable[[], np.ndarray]:
            # A single picture cannot be divided over devices.
            pipe = self.divided[name]
            pipe = self.single[name] if batch % pipe.shards else pipe
            settings = self.settings[name]
            draws = Draws.of(settings, Prompted(self.prompt), Prompted(self.null), indices)
            static = settings.static(pipe.model)
            return lambda: np.asarray(pipe.generate(draws, static)[0])

        few = self.settings["few"]
        hidden = np.array(self.prompt.hidden[0])
        return {
            "few": ours("few"),
            "whole": ours("whole"),
            "diffusers": lambda: self.twin.draw(hidden, noise, steps=few.steps, scale=few.guidance_scale),
        }

    def difference(self, ways: Ways, batch: int) -> int:
        """The largest of a pixel between `few` and `diffusers`, the noise between their steps the same."""
        keys = sampler_keys(np.zeros(batch, np.uint32), np.arange(batch))
        step = iter(range(self.settings["few"].steps))

        def drawn(*_: Any, **__: Any) -> torch.Tensor:
            now = next(step)
            fresh = [np.asarray(jax.random.normal(jax.random.fold_in(key, now), self.shape)) for key in keys]
            return torch.from_numpy(np.stack(fresh).transpose(0, 3, 1, 2).copy())

        before, scheduling_lcm.randn_tensor = scheduling_lcm.randn_tensor, drawn
        try:
            theirs = ways["diffusers"]()
        finally:
            scheduling_lcm.randn_tensor = before
        return int(np.abs(ways["few"]().astype(int) - theirs).max())


def timed(ways: Ways, rounds: int) -> dict[str, np.ndarray]:
    """Seconds on the clock and of the processor of each round, [rounds, 2]; every way has run once before."""
    for draw in ways.values():
        draw()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            start = time.perf_counter(), time.process_time()
            ways[name]()
            spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.array(each) for name, each in spent.items()}


def ratio(spent: dict[str, np.ndarray], name: str, column: int) -> str:
    """How much longer `name` takes than `few`: the median of the rounds, the least and the most."""
    each = spent[name][:, column] / spent["few"][:, column]
    return f"{np.median(each):.2f} ({each.min():.2f} to {each.max():.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="tiny", help="a name or a directory")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole-steps", type=int, default=50)
    parser.add_argument("--mesh", default=f"data={THREADS}", help="of ours; empty: one device")
    options = parser.parse_args()
    compilation_cache()
    mesh = open_mesh(options.mesh)
    bench = Bench(load_bundle(options.bundle, dtype="float32"), mesh, options.whole_steps)
    print(f"{THREADS} threads, {options.rounds} rounds; ratios are the median (the least to the most)\n")
    names = ("few", "whole", "diffusers")
    shown = [*(f"{name}, pictures/s" for name in names), *(f"few : {name}" for name in names[1:])]
    shown += [*(f"few : {name}, processor" for name in names[1:]), "largest difference"]
    print(f"| pictures a call | {' | '.join(shown)} |\n{'|---' * (len(shown) + 1)}|", flush=True)
    for batch in map(int, options.batches.split(",")):
        ways = bench.ways(batch)
        spent = timed(ways, options.rounds)
        rates = [f"{batch / np.median(spent[name][:, 0]):.3g}" for name in names]
        ratios = [ratio(spent, name, column) for column in (0, 1) for name in names[1:]]
        different = bench.difference(ways, batch)
        print(f"| {batch} | {' | '.join([*rates, *ratios, str(different)])} |", flush=True)


if __name__ == "__main__":
    main()
