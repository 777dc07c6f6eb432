"""Training and drawing on one GPU, beside PyTorch: python tests/bench/gpu.py OUT.json [--budget 470]

Stable Diffusion 1.4 with random weights, 512 x 512 pictures: the train step of its UNet that `mvader train` compiles
(bfloat16 compute, float32 weights, AdamW, latents computed before, CLIP's text tower frozen in the step, no remat), beside
diffusers' UNet on given text states under autocast, with `torch.compile` and without, each at the largest batch that fits;
then guided drawing of 50 PLMS steps, 16 pictures at a time and one. What is not tried because memory cannot hold it
(`Size.sample_gib`) is not compiled either.

Each part runs in a process of its own, which finds the GPU's memory free. OUT.json holds each measurement as soon as it is
there: null where no time was left for it, {"failed": ...} where it or its process failed. The whole ends with the budget, in
seconds. `--size small` is the same with a network that a CPU runs in a minute.
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
    """What is measured. batches: tried in this order until one fits; sample_gib: what a sample of a training batch takes, so
    that no larger batch is tried (as `mvader plan` says of a v5e); drawn: pictures drawn at a time; side: of the latents;
    width: of the condition; unet: what differs from Stable Diffusion 1.4's, as diffusers says it; backend: `torch.compile`'s.
    """

    batches: tuple[int, ...]
    sample_gib: float
    drawn: tuple[int, ...]
    side: int
    steps: int
    width: int
    unet: dict[str, Any]
    backend: str

    @property
    def names(self) -> tuple[str, ...]:
        """The measurements, in their order."""
        of_diffusers = ("PyTorch", "train, diffusers eager", "train, diffusers compiled")
        return ("device", "train, ours", *of_diffusers, *(f"draw {n}, ours" for n in self.drawn))


_SMALL = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
SIZES = {
    "sd14": Size((96, 80, 64, 48, 40, 32, 24, 16, 8), 1.3, (16, 1), 64, 50, 768, {}, "inductor"),
    # The backend "eager" compiles nothing: a CPU would need a compiler for C++, and a minute.
    "small": Size((2,), 0.0, (1,), 4, 2, 16, _SMALL, "eager"),
}
#: Weights, moments, gradients and a bfloat16 copy of 860 M parameters, and the text tower.
_STATE_GIB = 15.0


def record(out: Path, name: str, told: dict[str, Any] | None) -> None:
    """Adds a measurement to the file, which is whole at every moment."""
    found = json.loads(out.read_text()) if out.exists() else {}
    found[name] = told
    part = out.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(out)


@dataclasses.dataclass(frozen=True)
class Report:
    """The file of the measurements, and how long each rate is measured for, in seconds."""

    out: Path
    seconds: float

    def measure(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `run` tells, or how it failed: the measurements after it are not lost."""
        start = time.monotonic()
        try:
            told = run()
        except Exception as error:
            told = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        told["seconds"] = round(time.monotonic() - start, 1)
        record(self.out, name, told)
        print(name, json.dumps(told), flush=True)
        return told

    def rate(self, step: Callable[[], None], wait: Callable[[], None], images: int) -> dict[str, Any]:
        """Seconds of a step and images a second, after two steps to warm up: the mean of three steps or more."""
        for _ in range(2):
            step()
        wait()
        start, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - start < self.seconds:
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
        gc.collect()
    raise MemoryError(f"no batch fits; tried {refused}")


def worth_trying(size: Size, memory: float | None) -> list[int]:
    """The batches that so many GiB may hold; all where the device does not tell."""
    if memory is None:
        return list(size.batches)
    return [batch for batch in size.batches if _STATE_GIB + batch * size.sample_gib <= memory] or [
        size.batches[-1]
    ]


def model_of(size: Size) -> Any:
    """Our model: Stable Diffusion 1.4, or the small one."""
    from mvader_jax.diffusion.schedule import ScheduleConfig
    from mvader_jax.models.clip_text import ClipTextConfig
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.models.vae import VAEConfig
    from mvader_jax.prompt.tokenizer import TokenizerConfig

    text, unet, vae = ClipTextConfig.sd14(), UNetConfig.sd14(), VAEConfig.sd14()
    if size.unet:
        text = ClipTextConfig(width=size.width, num_layers=1, num_heads=2, mlp_width=32)
        unet = UNetConfig(
            block_out_channels=size.unet["block_out_channels"],
            layers_per_block=1,
            attention=(True,),
            cross_attention_dim=size.width,
            num_heads=2,
            norm_groups=4,
            sample_size=size.side,
        )
        vae = VAEConfig(block_out_channels=(8,), layers_per_block=1, norm_groups=4, sample_size=size.side)
    return ModelConfig(
        embedder="clip_text",
        text_encoder=text,
        unet=unet,
        vae=vae,
        schedule=ScheduleConfig(),
        tokenizer=TokenizerConfig.clip(),
    )


def compiled(program: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """A program compiled for the device here, random arguments, and what compiling took and tells."""
    import jax
    import jax.numpy as jnp

    from mvader_jax.plan.compile import memory_of

    start = time.perf_counter()
    # JAX calls a GPU by its maker where it lowers.
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    made = program.lower(platform).compile(program.compiler_options or None)
    spent = time.perf_counter() - start
    most = max(leaf.size for leaf in jax.tree.leaves(program.arguments))

    def filled(noise: jax.Array, path: Any, leaf: Any) -> jax.Array:
        """Random weights, for a GPU is faster with zeros; moments of 0."""
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        if leaf.ndim < 2 or not floats or "opt_state" in jax.tree_util.keystr(path):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return noise[: leaf.size].reshape(leaf.shape).astype(leaf.dtype)

    @jax.jit
    def fill() -> Any:
        noise = 0.02 * jax.random.normal(jax.random.key(0), (most,))
        return jax.tree_util.tree_map_with_path(lambda *leaf: filled(noise, *leaf), program.arguments)

    told = {
        "compiling_s": spent,
        "peak_gib": memory_of(made.memory_analysis())["peak"] / 2**30,
        "cudnn_attentions": made.as_text().count('custom_call_target="__cudnn$fmha'),
    }
    return made, list(fill()), told


def train_ours(size: Size, report: Report) -> None:
    import jax

    from mvader_jax.data.config import DataConfig
    from mvader_jax.data.sources import Records
    from mvader_jax.models.vae import VAEConfig
    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.plan.program import train_program
    from mvader_jax.train.config import Group, Stage, TrainConfig
    from mvader_jax.train.objectives import Diffusion
    from mvader_jax.train.optim.optimizer import OptimizerConfig

    model, mesh, device = model_of(size), open_mesh("data=1"), jax.devices()[0]
    assert mesh is not None
    limit = (device.memory_stats() or {}).get("bytes_limit")
    memory = None if limit is None else limit / 2**30
    report.measure(
        "device", lambda: {"kind": device.device_kind, "memory_gib": memory, "jax": jax.__version__}
    )

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
        run, (state, rows), told = compiled(train_program(config, stage, mesh, ["latents"]))
        held = [state]
        del state

        def step() -> None:
            held[0], *_ = run(held[0], rows)

        return {**report.rate(step, lambda: jax.block_until_ready(held[0]), batch), **told}

    def full(error: Exception) -> bool:
        return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()

    report.measure("train, ours", lambda: first_that_fits(worth_trying(size, memory), train, full))


def draw_ours(size: Size, report: Report) -> None:
    import jax

    from mvader_jax.parallel.mesh import open_mesh
    from mvader_jax.plan.program import sample_program
    from mvader_jax.sampling.settings import SamplingSettings

    model, mesh = model_of(size), open_mesh("data=1")
    assert mesh is not None

    def draw(batch: int) -> dict[str, Any]:
        settings = SamplingSettings(sampler="plms", steps=size.steps)
        run, arguments, told = compiled(sample_program(model, mesh, batch, settings))
        last: list[Any] = []

        def step() -> None:
            last[:] = [run(*arguments)]

        return {**report.rate(step, lambda: jax.block_until_ready(last), batch), **told}

    for batch in size.drawn:
        report.measure(f"draw {batch}, ours", lambda batch=batch: draw(batch))


def train_diffusers(size: Size, report: Report) -> None:
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"cross_attention_dim": size.width, "attention_head_dim": 8, **size.unet}
    if size.unet:
        options |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train(batch: int, whole: bool) -> dict[str, Any]:
        # What a larger batch left behind.
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        unet = diffusers.UNet2DConditionModel(**options).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=device == "cuda")
        called = torch.compile(unet, backend=size.backend) if whole else unet
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

        return report.rate(step, wait, batch)

    def fitting(batches: Iterable[int], whole: bool) -> dict[str, Any]:
        return first_that_fits(
            batches,
            lambda batch: train(batch, whole),
            lambda error: isinstance(error, torch.OutOfMemoryError),
        )

    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if device == "cuda" else None
    batches = worth_trying(size, memory)
    report.measure("PyTorch", lambda: {"torch": torch.__version__, "diffusers": diffusers.__version__})
    told = report.measure("train, diffusers eager", lambda: fitting(batches, False))
    # Compiling takes a minute; trying without takes seconds.
    batches = [batch for batch in batches if batch not in told.get("too_large", ())]
    report.measure("train, diffusers compiled", lambda: fitting(batches, True))


#: Each part runs in its own process. What is left out when time runs short comes last.
PARTS = {"train": train_ours, "diffusers": train_diffusers, "draw": draw_ours}


def in_its_own_process(part: str, options: argparse.Namespace, left: float) -> str | None:
    """How a part failed that did not end well, else None."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    # JAX takes three quarters of the GPU's memory unless it is told.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ, "PYTHONPATH": paths}
    flags = ["--size", options.size, "--seconds", str(options.seconds), "--here", part]
    command = [sys.executable, __file__, str(options.out), *flags]
    try:
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return f"not done when the budget of {options.budget:g} s was over"
    sys.stderr.write(done.stderr)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"the process ended with {done.returncode}: {last[:300]}" if done.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="sd14")
    parser.add_argument("--budget", type=float, default=470, help="seconds, of all parts together")
    parser.add_argument("--seconds", type=float, default=8, help="that each rate is measured for")
    parser.add_argument(
        "--parts", choices=PARTS, nargs="+", default=list(PARTS), help="all where none is named"
    )
    parser.add_argument("--here", choices=PARTS, help="one part, in this process")
    options = parser.parse_args()
    size = SIZES[options.size]
    if options.here is not None:
        PARTS[options.here](size, Report(options.out, options.seconds))
        return
    end = time.monotonic() + options.budget
    options.out.write_text(json.dumps(dict.fromkeys(size.names)) + "\n")
    for part in options.parts:
        left = end - time.monotonic()
        failed = in_its_own_process(part, options, left) if left > 0 else "no time was left"
        if failed is not None:
            record(options.out, part, {"failed": failed})
            print(f"{part}: {failed}", file=sys.stderr)


if __name__ == "__main__":
    main()
