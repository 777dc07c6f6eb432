"""Stable Diffusion 1.4's UNet beside PyTorch eager: python tests/bench/unet_forward.py [--sizes 32,64]

Full size, float32, batch 2, 77 positions, the same threads, taking turns in one process; weights are random.
The last ratio is of processor time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

THREADS = len(os.sched_getaffinity(0))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffusers  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from mvader_jax.condition import Condition  # noqa: E402
from mvader_jax.models.components import abstract_components  # noqa: E402
from mvader_jax.models.config import ModelConfig  # noqa: E402
from mvader_jax.models.unet import UNet, UNetConfig  # noqa: E402

PEER_CONFIG = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def ours(batch: int, side: int) -> Callable[[], object]:
    config = UNetConfig.sd14()
    shapes, _ = abstract_components(ModelConfig(unet=config), ["unet"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.02), shapes["unet"]
    )
    condition = Condition(
        rng.standard_normal((batch, 77, 768), np.float32), np.zeros((batch, 77), np.float32)
    )
    latents = rng.standard_normal((batch, side, side, 4), np.float32)
    times = np.full(batch, 500, np.int32)
    forward = jax.jit(lambda params, *inputs: UNet(config).apply({"params": params}, *inputs))
    inputs = jax.device_put((params, latents, times, condition))
    return lambda: forward(*inputs).block_until_ready()


def theirs(batch: int, side: int) -> Callable[[], object]:
    torch.set_num_threads(THREADS)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**PEER_CONFIG)
    unet = unet.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(0, 0.02)
    latents, states = torch.randn(batch, 4, side, side), torch.randn(batch, 77, 768)

    def forward() -> object:
        with torch.inference_mode():
            return unet(latents, 500, states).sample

    return forward


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{THREADS} threads, batch {options.batch}, medians of {options.rounds} rounds")
    print(f"{'latents':>8} {'ours s':>8} {'PyTorch s':>10} {'ours / PyTorch':>15} {'cpu':>6}")
    for side in map(int, options.sizes.split(",")):
        runs = {"ours": ours(options.batch, side), "theirs": theirs(options.batch, side)}
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for forward in runs.values():
            forward()
        for _ in range(options.rounds):
            for name, forward in runs.items():
                start = time.perf_counter(), time.process_time()
                forward()
                spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        mine, others = (np.median(spent[name], axis=0) for name in ("ours", "theirs"))
        ratio, cpu = mine / others
        print(f"{side:>5}x{side:<3} {mine[0]:7.3f} {others[0]:10.3f} {ratio:15.2f} {cpu:6.2f}", flush=True)


if __name__ == "__main__":
    main()
