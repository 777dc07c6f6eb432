"""The benchmark for other people's models: its prompts written to a folder, and a folder of pictures judged."""

from __future__ import annotations

import concurrent.futures
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.world import Sight, World
from mvader_jax.errors import UserError
from mvader_jax.images.names import PICTURES
from mvader_jax.images.pixels import to_uint8
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.scores import Scorer
from mvader_jax.paper.emoji.sheets import Strips
from mvader_jax.paper.emoji.table import Table
from mvader_jax.paper.emoji.tasks import COUNT, Benchmark, BenchTask
from mvader_jax.storage.atomic import make_directory, write_file

PROMPTS_FILE = "prompts.jsonl"


def judge_folder(
    world: World, folder: Path, parts: Sequence[str], count: int = COUNT, strips: Strips | None = None
) -> dict[str, Any]:
    """The scores of pictures named by prompt id. strips: where contact sheets go.

    Raises UserError where no part has prompts, and as `read_folder`, before anything is judged.
    """
    bench = Benchmark(world, count)
    tasks = bench.of(parts)
    pictures = read_folder(folder, [task for found in tasks.values() for task in found])
    scorer, table = Scorer(world), Table(strips=strips)
    table.begin({**bench.about(), "pictures": str(folder)})
    for part, found in tasks.items():
        own, pictures = pictures[: len(found)], pictures[len(found) :]
        table.add(part, {"method": "pictures"}, own, scorer.score(found, own))
    table.end(world, tasks)
    return table.result


def write_prompts(world: World, folder: Path, parts: Sequence[str], count: int = COUNT) -> int:
    """The prompts for somebody else's model: `prompts.jsonl`, a prompt a line with its id, and the pictures in it.

    A line's elements are strings, and paths of pictures relative to the file. Returns how many there are.
    Raises UserError where no part has prompts, and where the folder cannot be written.
    """
    asked = Benchmark(world, count).of(parts)
    make_directory(folder / "shown")
    lines = []
    for tasks in asked.values():
        for task in tasks:
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

    Other files are no part of it. Raises UserError where the folder or a picture is missing, naming the first and how
    many, where two files are of one prompt, and where one is no picture.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder of pictures")
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read: {error.strerror}") from None
    files: dict[str, Path] = {}
    wanted = {task.id for task in tasks}
    for path in [path for path in paths if path.stem in wanted and path.suffix.lower() in PICTURES]:
        other = files.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"{str(folder)!r} has two pictures of one prompt: {other.name} and {path.name}")
    missing = [task.id for task in tasks if task.id not in files]
    if missing:
        raise UserError(
            f"{str(folder)!r} has no picture of {len(missing)} of {len(tasks)} prompts; the first is {missing[0]}.png"
        )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = pool.map(lambda task: to_uint8(to_vae_pixels(files[task.id], SIDE, SIDE)), tasks)
        return np.stack([np.asarray(picture) for picture in read])
