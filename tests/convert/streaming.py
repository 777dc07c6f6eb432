"""How fast and in how much memory a GPT-J-6B-shaped source is converted, beside a plain copy of its files.

    python tests/convert/streaming.py DIRECTORY [--layers 28] [--kind safetensors]

Writes random float16 shards into DIRECTORY (12 GB for 28 layers, and as much again for the bundle), copies
them, converts them in a process of its own, prints both rates, and removes everything. Both start with a
cold cache and end when the disk has everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Names = dict[str, tuple[int, ...]]
WIDTH, MLP, VOCABULARY, SHARDS = 4096, 16384, 50400, 8
SETTINGS = {
    "model_type": "gptj",
    "n_embd": WIDTH,
    "n_head": 16,
    "rotary_dim": 64,
    "n_positions": 2048,
    "activation_function": "gelu_new",
}


def names_of(layers: int) -> Names:
    """transformers' names of GPT-J's tensors."""
    names: Names = {"transformer.wte.weight": (VOCABULARY, WIDTH)}
    for i in range(layers):
        block = f"transformer.h.{i}."
        names |= {f"{block}attn.{p}_proj.weight": (WIDTH, WIDTH) for p in ("q", "k", "v", "out")}
        names |= {f"{block}ln_1.weight": (WIDTH,), f"{block}ln_1.bias": (WIDTH,)}
        names |= {f"{block}mlp.fc_in.weight": (MLP, WIDTH), f"{block}mlp.fc_in.bias": (MLP,)}
        names |= {f"{block}mlp.fc_out.weight": (WIDTH, MLP), f"{block}mlp.fc_out.bias": (WIDTH,)}
    names |= {"transformer.ln_f.weight": (WIDTH,), "transformer.ln_f.bias": (WIDTH,)}
    return names | {"lm_head.weight": (VOCABULARY, WIDTH), "lm_head.bias": (VOCABULARY,)}


def make_source(folder: Path, layers: int, kind: str) -> int:
    """Writes the shards; returns their bytes."""
    from mvader_jax.convert.formats.safetensors import write_safetensors

    names = names_of(layers)
    rng = np.random.default_rng(0)
    # One block of numbers serves all: what is in them does not change the work.
    block = (0.02 * rng.standard_normal(VOCABULARY * WIDTH // 8, np.float32)).astype(np.float16)
    weight_map = {}
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        chosen = list(names)[shard::SHARDS]
        described = {name: (names[name], np.dtype(np.float16)) for name in chosen}

        def arrays(chosen: list[str] = chosen) -> Iterator[tuple[str, np.ndarray]]:
            for name in chosen:
                yield name, np.resize(block, names[name])

        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.{kind}"
        if kind == "safetensors":
            write_safetensors(folder / file, described, arrays())
        else:
            import torch

            torch.save({name: torch.from_numpy(array) for name, array in arrays()}, folder / file)
        weight_map.update(dict.fromkeys(chosen, file))
    (folder / f"model.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**SETTINGS, "n_layer": layers}))
    return sum(file.stat().st_size for file in folder.iterdir())


def cool(folder: Path) -> None:
    """Takes a folder's files out of the page cache."""
    os.sync()
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclasses.dataclass(frozen=True)
class Measured:
    """seconds of wall clock and of processor; peak: bytes of memory of the process."""

    seconds: float
    cpu: float
    peak: int


def timed(*command: str) -> Measured:
    """Runs a command and waits until the disk has what it wrote."""
    begun = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    os.sync()
    seconds = time.perf_counter() - begun
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def measure(folder: Path, layers: int, kind: str) -> tuple[int, Measured, Measured]:
    """(bytes of the source, the copy, the conversion)."""
    source = folder / "source"
    try:
        size = make_source(source, layers, kind)
        cool(source)
        copy = timed("cp", "-r", str(source), str(folder / "copy"))
        shutil.rmtree(folder / "copy")
        cool(source)
        program = (sys.executable, "-m", "mvader_jax.cli.main")
        made = timed(*program, "convert", str(source), str(folder / "bundle"))
    finally:
        for name in ("source", "copy", "bundle"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return size, copy, made


def report(size: int, copy: Measured, made: Measured) -> str:
    """Both rates, their ratio, and the memory."""
    lines = [f"{size / 1e9:.2f} GB of shards"]
    for what, m in (("plain copy", copy), ("conversion", made)):
        lines.append(
            f"{what}: {size / m.seconds / 1e6:.0f} MB/s, {m.seconds:.1f} s ({m.cpu:.1f} s of processor)"
        )
    lines.append(f"conversion / copy: {copy.seconds / made.seconds:.2f}")
    return "\n".join([*lines, f"peak memory of the conversion: {made.peak / 1e9:.2f} GB"])


def largest(layers: int) -> int:
    """Bytes of the largest tensor."""
    return 2 * max(int(np.prod(shape)) for shape in names_of(layers).values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--kind", choices=("safetensors", "bin"), default="safetensors")
    given = parser.parse_args()
    print(report(*measure(given.folder, given.layers, given.kind)))
