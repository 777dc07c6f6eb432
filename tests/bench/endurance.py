"""Ten thousand pictures, killed twice on the way: python tests/bench/endurance.py [--bundle tiny] [--steps 4]

Runs `mvader sample --prompts`, watches its resident memory, kills it with SIGKILL when a third and two thirds
of the pictures are there, starts it again, and checks the directory: no picture missing, none double, none
truncated. Exits 1 where that is not so. Memory is told for each kind of prompt, texts and texts with an image: they
are drawn one after the other, and the second kind needs another program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import PIL.Image

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")


def write_prompts(path: Path, count: int) -> None:
    """Lines of ten pictures each, texts of different lengths, every fifth with an image."""
    from mvader_jax.data.scenes.world import render, scene_at

    for number in range(20):
        PIL.Image.fromarray(render(scene_at(0, number))).save(path.parent / f"{number}.png")
    lines = []
    for number in range(count // 10):
        text = f"a {'large solid ' * (number % 3 == 0)}{COLORS[number % 6]} {SHAPES[number % 4]}"
        prompt = [{"text": text}]
        if number % 5 == 0:
            prompt.append({"image": f"{number % 20}.png", "weight": 0.3})
        lines.append(json.dumps({"id": f"p{number:05d}", "prompt": prompt, "num_images": 10, "seed": number}))
    path.write_text("\n".join(lines) + "\n")


def drawn(out: Path) -> dict[str, int]:
    """How many pictures of each kind of prompt are there; those with an image are longer and come first."""
    numbers = [int(path.name[1:6]) for path in out.glob("*.png")] if out.is_dir() else []
    images = sum(number % 5 == 0 for number in numbers)
    return {"texts": len(numbers) - images, "images": images}


def resident(pid: int) -> float:
    """MB."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found.group(1)) / 1024 if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    place = options.out or Path(tempfile.mkdtemp(prefix="endurance-"))
    place.mkdir(parents=True, exist_ok=True)
    out = place / "out"
    write_prompts(place / "prompts.jsonl", options.count)
    command = [
        sys.executable, "-m", "mvader_jax.cli.main", "sample", "--prompts", str(place / "prompts.jsonl"),
        "--out", str(out), "--bundle", options.bundle, "--steps", str(options.steps),
        "--batch", str(options.batch),
    ]  # fmt: skip
    kills = [options.count // 3, 2 * options.count // 3]
    growth: list[str] = []
    started = time.monotonic()
    for run in range(3):
        before = drawn(out)
        process = subprocess.Popen(
            command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.DEVNULL
        )
        sizes: dict[str, list[float]] = {}
        while process.poll() is None:
            time.sleep(0.5)
            there = drawn(out)
            kind = "texts" if there["texts"] else "images"
            if there[kind] - before[kind] >= 500 and (size := resident(process.pid)):
                sizes.setdefault(kind, []).append(size)
            if run < 2 and sum(there.values()) >= kills[run]:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        told = [f"{kind} {seen[0]:.0f} MB, then at most {max(seen):.0f}" for kind, seen in sizes.items()]
        growth += [f"{max(seen) - seen[0]:.0f}" for seen in sizes.values()]
        left = len(list(out.glob(".*.tmp")))
        print(
            f"run {run + 1}: {sum(drawn(out).values())} pictures, exit code {process.returncode}; resident after "
            f"500: {'; '.join(told)}; {left} temporary files left",
            flush=True,
        )
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    files = sorted(path.name for path in out.glob("*.png"))
    expected = sorted(f"p{n:05d}-{i:03d}.png" for n in range(options.count // 10) for i in range(10))
    broken = 0
    for name in files:
        try:
            with PIL.Image.open(out / name) as image:
                image.load()
        except OSError:
            broken += 1
    doubles = len(rows) - len({row["file"] for row in rows})
    good = (
        process.returncode == 0
        and files == expected
        and sorted(row["file"] for row in rows) == expected
        and not broken
        and not doubles
        and not list(out.glob(".*"))
    )
    print(
        f"{len(files)} of {len(expected)} pictures, {len(rows)} rows, {doubles} double, {broken} truncated; growth of "
        f"resident memory after the first 500: {', '.join(growth)} MB; "
        f"{time.monotonic() - started:.0f} s: {'good' if good else 'BAD'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
