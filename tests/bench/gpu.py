"""Training and drawing on one GPU, beside PyTorch: python tests/bench/gpu.py OUT.json [--budget 480]

Stable Diffusion 1.4 with random weights, 512 x 512 pictures: the train step of its UNet that `mvader train` compiles
(bfloat16 compute, float32 weights, AdamW, latents computed before, CLIP's text tower frozen in the step, no remat) at the
largest batch that fits, beside diffusers' UNet on given text states under autocast, with `torch.compile` and without; then
guided drawing of 50 PLMS steps, one picture and 16 at a time. Each measurement is written to OUT.json as soon as it is
there, and none begins after the budget's seconds are over. PyTorch runs in a process of its own, after ours: neither finds
the other's memory. `--size small` is the same with a network that a CPU runs in a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured. batches: tried in this order until one fits; drawn: pictures drawn at a time; side: of the
    latents; width: of the condition; unet: what differs from Stable Diffusion 1.4's."""

    batches: tuple[int, ...]
    drawn: tuple[int, ...]
    side: int
    steps: int
    width: int
    unet: dict[str, Any]


_ONE_LEVEL = {"block_out_channels": (32,), "layers_per_block": 1}
SIZES = {
    "sd14": Size((64, 48, 32, 24, 16, 8), (1, 16), 64, 50, 768, {}),
    "small": Size((2,), (1,), 4, 2, 32, _ONE_LEVEL),
}


class Report:
    """The measurements so far, in a file that is whole after each."""

    def __init__(self, out: Path, budget: float) -> None:
        self.out, self.end = out, time.monotonic() + budget
        self.found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def measure(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What `run` tells, or how it failed; None where no time was left to begin."""
        if time.monotonic() > self.end:
            told: dict[str, Any] | None = None
        else:
            start = time.monotonic()
            try:
                told = run()
            except Exception as error:  # a measurement that fails must not lose the others
                told = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            told["seconds"] = round(time.monotonic() - start, 1)
        self.found[name] = told
        self.out.write_text(json.dumps(self.found, indent=2) + "\n")
        print(name, json.dumps(told), flush=True)
        return told


def rate(
    step: Callable[[], None], wait: Callable[[], None], images: int, *, at_least: float
) -> dict[str, Any]:
    """Seconds of a step and images a second, after two steps to warm up: the mean over `at_least` seconds, three
    steps or more."""
    for _ in range(2):
        step()
    wait()
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < at_least:
        step()
        count += 1
        if count % 4 == 0:
            wait()
    wait()
    seconds = (time.perf_counter() - start) / count
    return {"batch": images, "step_s": seconds, "images_s": images / seconds, "steps": count}


def first_that_fits(
    batches: Iterable[int], run: Callable[[int], dict[str, Any]], full: Callable[[Exception], bool]
) -> dict[str, Any]:
    """`run` at the first batch for which memory suffices, and those that were too large."""
    refused = []
    for batch in batches:
        try:
            return {**run(batch), "too_large": refused}
        except Exception as error:
            if not full(error):
                raise
            refused.append(batch)
    raise MemoryError(f"no batch fits; tried {refused}")


def ours(size: Size, report: Report, seconds: float) -> None:
    import jax
    import jax.numpy as jnp

    from mvader_jax.data.config import DataConfig
    from mvader_jax.data.sources import Records
    from mvader_jax.diffusion.schedule import ScheduleConfig
    from mvader_jax.models.clip_text import ClipTextConfig
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.models.vae import VAEConfig
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.plan.program import Program, sample_program, train_program
    from mvader_jax.prompt.tokenizer import TokenizerConfig
    from mvader_jax.sampling.settings import SamplingSettings
    from mvader_jax.train.config import Group, Stage, TrainConfig
    from mvader_jax.train.objectives import Diffusion
    from mvader_jax.train.optim.optimizer import OptimizerConfig

    small = bool(size.unet)
    model = ModelConfig(
        embedder="clip_text",
        text_encoder=ClipTextConfig(width=32, num_layers=1, num_heads=2, mlp_width=64)
        if small
        else ClipTextConfig.sd14(),
        unet=UNetConfig(**size.unet, attention=(True,), cross_attention_dim=32, sample_size=4)
        if small
        else UNetConfig.sd14(),
        vae=VAEConfig.tiny() if small else VAEConfig.sd14(),
        schedule=ScheduleConfig(),
        tokenizer=TokenizerConfig.clip(),
    )
    mesh = open_mesh("data=1")
    assert mesh is not None

    def filled(path: Any, leaf: Any) -> jax.Array:
        """Random weights, moments of 0."""
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if (
            leaf.ndim < 2
            or not jnp.issubdtype(leaf.dtype, jnp.floating)
            or "opt_state" in jax.tree_util.keystr(path)
        ):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return 0.02 * jax.random.normal(jax.random.key(leaf.size % 1013), leaf.shape, leaf.dtype)

    def compiled(program: Program) -> tuple[Any, list[Any], float]:
        start = time.perf_counter()
        made = program.lower(jax.default_backend()).compile(program.compiler_options or None)
        spent = time.perf_counter() - start
        fill = jax.jit(lambda: jax.tree_util.tree_map_with_path(filled, program.arguments))
        return made, list(fill()), spent

    def train(batch: int) -> dict[str, Any]:
        stage = Stage(
            objective=Diffusion(p_image=0.0),
            groups={"unet": Group("unet/.*", 1e-4)},
            steps=1_000,
            batch_size=batch,
            data=DataConfig(Records(("unread",)), image_size=size.side * model.require(VAEConfig).multiple),
            optimizer=OptimizerConfig(ema_decay=0.0),
            dtype="bfloat16",
        )
        config = TrainConfig(name="bench", model=model, stages={"diffusion": stage})
        program = train_program(config, stage, mesh, ["latents"])
        run, (state, rows), spent = compiled(program)
        held = [state]
        del state

        def step() -> None:
            held[0], *_ = run(held[0], rows)

        told = rate(step, lambda: jax.block_until_ready(held[0]), batch, at_least=seconds)
        return {**told, "compiling_s": spent, "peak_gib": run.memory_analysis().peak_memory_in_bytes / 2**30}

    def full(error: Exception) -> bool:
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()

    def draw(batch: int) -> dict[str, Any]:
        program = sample_program(model, mesh, batch, SamplingSettings(steps=size.steps))
        run, arguments, spent = compiled(program)
        last: list[Any] = []

        def step() -> None:
            last[:] = [run(*arguments)]

        return {
            **rate(step, lambda: jax.block_until_ready(last), batch, at_least=seconds),
            "compiling_s": spent,
        }

    device = jax.devices()[0]
    report.measure("device", lambda: {"kind": device.device_kind, "jax": jax.__version__})
    report.measure("train, ours", lambda: first_that_fits(size.batches, train, full))
    for batch in size.drawn:
        report.measure(f"draw {batch}, ours", lambda batch=batch: draw(batch))


def theirs(size: Size, report: Report, seconds: float) -> None:
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = bool(size.unet)
    options: dict[str, Any] = {"cross_attention_dim": size.width, "attention_head_dim": 8}
    if small:
        options |= size.unet
        options |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train(batch: int, whole: bool) -> dict[str, Any]:
        # What a larger batch left behind.
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        unet = diffusers.UNet2DConditionModel(**options).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=device == "cuda")
        called = torch.compile(unet) if whole else unet
        noisy = torch.randn(batch, 4, size.side, size.side, device=device)
        noisy = noisy.to(memory_format=torch.channels_last)
        states, noise = torch.randn(batch, 77, size.width, device=device), torch.randn_like(noisy)
        times = torch.randint(0, 1000, (batch,), device=device)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16):
                eps = called(noisy, times, states).sample
            torch.nn.functional.mse_loss(eps.float(), noise).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return rate(step, wait, batch, at_least=seconds)

    def full(error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def fitting(whole: bool) -> dict[str, Any]:
        return first_that_fits(size.batches, lambda batch: train(batch, whole), full)

    report.measure("PyTorch", lambda: {"torch": torch.__version__, "diffusers": diffusers.__version__})
    report.measure("train, diffusers eager", lambda: fitting(False))
    report.measure("train, diffusers compiled", lambda: fitting(True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="sd14")
    parser.add_argument("--budget", type=float, default=480, help="seconds, of both processes together")
    parser.add_argument("--seconds", type=float, default=8, help="that each rate is measured for")
    parser.add_argument("--side", choices=("ours", "theirs"), help="one of them, in this process")
    options = parser.parse_args()
    if options.side is not None:
        report = Report(options.out, options.budget)
        {"ours": ours, "theirs": theirs}[options.side](SIZES[options.size], report, options.seconds)
        return
    end = time.monotonic() + options.budget
    options.out.write_text("{}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for side in ("ours", "theirs"):
        flags = ["--size", options.size, "--seconds", str(options.seconds), "--side", side]
        left = ["--budget", str(end - time.monotonic())]
        done = subprocess.run([sys.executable, __file__, str(options.out), *flags, *left], env=environment)
        if done.returncode:
            print(f"{side} ended with {done.returncode}", file=sys.stderr)


if __name__ == "__main__":
    main()
