"""The benchmark for other people's models: its prompts written to a folder, and a folder of pictures judged."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.world import Sight, World
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_uint8
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.scores import Scorer
from mvader_jax.paper.emoji.tasks import COUNT, Benchmark, BenchTask
from mvader_jax.storage.atomic import make_directory, write_file

PROMPTS_FILE = "prompts.jsonl"


def judge_folder(world: World, folder: Path, parts: Sequence[str], count: int = COUNT) -> dict[str, Any]:
    """The scores of pictures named by prompt id. Raises UserError as `read_folder`."""
    bench, scorer = Benchmark(world, count), Scorer(world)
    result: dict[str, Any] = {"settings": {**bench.about(), "pictures": str(folder)}}
    for part in parts:
        tasks = bench.tasks(part)
        scores = scorer.score(tasks, read_folder(folder, tasks)) if tasks else {}
        result[part] = [{"method": "pictures", "prompts": len(tasks), **scores}]
    return result


def write_prompts(world: World, folder: Path, parts: Sequence[str], count: int = COUNT) -> int:
    """The prompts for somebody else's model: `prompts.jsonl`, a prompt a line with its id, and the pictures in it.

    A line's elements are strings, and paths of pictures relative to the file. Returns how many there are.
    Raises UserError where the folder cannot be written.
    """
    bench = Benchmark(world, count)
    make_directory(folder / "shown")
    lines = []
    for part in parts:
        for task in bench.tasks(part):
            elements: list[Any] = []
            for number, one in enumerate(task.elements):
                name = f"shown/{task.id}-{number}.png"
                if isinstance(one, Sight):
                    write_file(folder / name, _png(world.render(one, SIDE)))
                elements.append(one if isinstance(one, str) else {"image": name})
            lines.append(
                json.dumps({"id": task.id, "prompt": elements, "told": task.told}, ensure_ascii=False)
            )
    write_file(folder / PROMPTS_FILE, "\n".join(lines) + "\n")
    return len(lines)


def _png(picture: UInt8[np.ndarray, "64 64 3"]) -> bytes:
    """As a file that says nothing of who drew it: `save_png` marks what a model did."""
    import PIL.Image

    held = io.BytesIO()
    PIL.Image.fromarray(picture).save(held, "PNG")
    return held.getvalue()


def read_folder(folder: Path, tasks: Sequence[BenchTask]) -> UInt8[np.ndarray, "N 64 64 3"]:
    """Somebody's pictures of the tasks, `ID.png` (or another kind) each, at the size that is judged.

    Raises UserError where the folder or a picture is missing, naming the first and how many.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder of pictures")
    files = {
        path.stem: path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".jsonl"
    }
    missing = [task.id for task in tasks if task.id not in files]
    if missing:
        raise UserError(
            f"{str(folder)!r} has no picture of {len(missing)} of {len(tasks)} prompts; the first is {missing[0]}.png"
        )
    return np.stack([to_uint8(to_vae_pixels(files[task.id], SIDE, SIDE)) for task in tasks])
