"""The first pictures: the paper's four tasks, drawn in one call of one compiled program."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.images.read import load_image
from mvader_jax.paper.demos import Demo, demo_of
from mvader_jax.paper.layout import Cell, sheet, shown
from mvader_jax.prompt.elements import Prompt
from mvader_jax.prompt.parse import parse_part
from mvader_jax.sampling.generate import Draws, Prompted
from mvader_jax.sampling.output import check_replaceable
from mvader_jax.sampling.pictures import not_finite
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings, image_count
from mvader_jax.storage.atomic import make_directory, write_file


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A task, the command that draws it, and the file of its pictures."""

    task: str
    command: str
    path: Path


def write_inputs(demo: Demo, directory: Path) -> dict[str, Path]:
    """The input pictures as files: {name: path}. Raises UserError where another file has such a name."""
    make_directory(directory)
    paths = {name: directory / name for name in demo.inputs}
    for name, shown_by in demo.inputs.items():
        picture = PIL.Image.fromarray(shown_by())
        if os.path.lexists(paths[name]):
            if not _shows(paths[name], picture):
                raise UserError(
                    f"{str(paths[name])!r} exists already and is no input of the demo; choose another --out"
                )
            continue
        data = io.BytesIO()
        picture.save(data, format="PNG")
        write_file(paths[name], data.getvalue(), new=True)
    return paths


def _shows(path: Path, picture: PIL.Image.Image) -> bool:
    try:
        return np.array_equal(np.asarray(load_image(path)), np.asarray(picture))
    except UserError:
        return False


def demo(
    pipe: Pipeline,
    out: Path,
    settings: SamplingSettings | None = None,
    *,
    num_images: int = 4,
    fast: bool = False,
) -> list[Drawn]:
    """Draws every task of the bundle's demo into `out`: the prompt's pictures, then what was made of it.

    fast: whether the pipeline was loaded with the few-step UNet, which the commands then say. All prompts are padded to
    one length, so that one program serves them. Raises UserError where `out` cannot be written; and, when the other
    tasks are in place, where NaN or infinity arose in a picture.
    """
    settings, count = settings or pipe.defaults, image_count(num_images)
    static = settings.static(pipe.model)
    chosen = demo_of(pipe.bundle)
    for task in chosen.tasks:
        check_replaceable(out / f"{task}.png", "demo")
    inputs = write_inputs(chosen, out / "inputs")
    parts = {name: [_located(part, inputs) for part in task] for name, task in chosen.tasks.items()}
    prompts = [Prompt(tuple(parse_part(part) for part in words)) for words in parts.values()]
    rows = np.repeat(np.arange(len(prompts), dtype=np.int32), count)
    prompted = pipe.bundle.to_batch(prompts, site=settings.site, balance=settings.balance)
    draws = Draws.of(
        settings,
        Prompted(prompted, rows),
        Prompted(pipe.bundle.to_batch([None])),
        np.tile(np.arange(count, dtype=np.int32), len(prompts)),
    )
    pixels, finite = map(np.asarray, pipe.generate(draws, static))
    pictures = pixels.reshape(len(prompts), count, *pixels.shape[1:])
    whole = np.all(finite.reshape(len(prompts), count), axis=1)
    drawn, bad = [], []
    command = ["mvader sample", *(["--fast"] if fast else [])]
    for (task, words), prompt, made, good in zip(parts.items(), prompts, pictures, whole, strict=True):
        if not good:
            bad.append(task)
            continue
        path = out / f"{task}.png"
        quoted = [f'"{word}"' if " " in word else word for word in words]
        metadata = {"demo": task, "prompt": words, "seed": settings.seed, "steps": settings.steps}
        save_png(path, sheet([[*shown(prompt.elements), *map(Cell, made)]]), metadata)
        drawn.append(Drawn(task, " ".join([*command, *quoted]), path))
    if bad:
        raise UserError(not_finite(f"the pictures of {', '.join(bad)}"))
    return drawn


def _located(part: str, inputs: dict[str, Path]) -> str:
    return str(inputs.get(part, part))
