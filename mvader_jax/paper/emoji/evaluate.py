"""The benchmark of the picture world run on a bundle, or on a folder of somebody's pictures."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.bounds import NonNegativeFloat, Share
from mvader_jax.data.emoji.prompts import prompt_of
from mvader_jax.data.emoji.world import Sight, World
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_uint8
from mvader_jax.images.png import save_png
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.images.sheet import grid
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.scores import Scorer, read_folder
from mvader_jax.paper.emoji.tasks import COUNT, PARTS, Benchmark, BenchTask
from mvader_jax.paper.evaluate import Evaluation, Progress, draw
from mvader_jax.prompt.elements import SITES, Image, Prompt, Text
from mvader_jax.sampling.generate import InitImages
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import image_size
from mvader_jax.settings import Checked
from mvader_jax.storage.atomic import make_directory, write_file

#: What is compared: the prompt as it is; parts of it alone; and what the paper compares with.
METHODS = ("prompt", "text", "told", "picture", "img2img", "img2img-told", "interpolation")
PROMPTS_FILE = "prompts.jsonl"


@dataclasses.dataclass(frozen=True)
class Methods(Checked):
    """names: of METHODS. thetas, sites: of the pictures in a prompt that holds words too. strengths: of img2img
    and latent interpolation."""

    names: tuple[str, ...] = METHODS
    thetas: tuple[NonNegativeFloat, ...] = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
    sites: tuple[str, ...] = ("decoder", "cross_attention", "both")
    strengths: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, accepted, what in ((self.names, METHODS, "method"), (self.sites, SITES, "site")):
            for name in [name for name in given if name not in accepted]:
                raise UserError(f"unknown {what} {name!r}; accepted: {', '.join(accepted)}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of the table: how the tasks of a part are drawn. starts: what sampling begins from."""

    row: dict[str, Any]
    prompts: Sequence[Prompt | None]
    starts: Sequence[tuple[Sight, ...]] | None = None
    strength: float = 1.0


def runs(world: World, tasks: Sequence[BenchTask], methods: Methods) -> Iterator[Run]:
    """Every method that the tasks of a part allow; what reads pictures needs some, and so on."""
    shown = all(task.shown for task in tasks)
    words = all(task.words for task in tasks)
    size = SIDE

    def texts(of: Callable[[BenchTask], Sequence[str]]) -> list[Prompt | None]:
        return [Prompt(tuple(Text(word) for word in of(task))) if of(task) else None for task in tasks]

    def wanted(name: str, possible: bool) -> bool:
        return name in methods.names and possible

    if wanted("prompt", True):
        # Weights and sites are of a picture beside words; elsewhere all weigh the same.
        curve = [(t, s) for s in methods.sites for t in methods.thetas if t != 1.0] if shown and words else []
        for theta, site in [(1.0, "any"), *curve]:
            prompts = [_weighted(prompt_of(world, task.elements, size), theta, site) for task in tasks]
            yield Run({"method": "prompt", "theta": theta, "site": site}, prompts)
    if wanted("text", words and shown):
        yield Run({"method": "text"}, texts(lambda task: task.words))
    if wanted("told", shown):
        yield Run({"method": "told"}, texts(lambda task: (task.told,)))
    if wanted("picture", shown and (words or len(tasks[0].shown) > 1)):
        yield Run({"method": "picture"}, [prompt_of(world, task.shown[:1], size) for task in tasks])
    single = shown and len(tasks[0].shown) == 1
    for name, of in (("img2img", lambda task: task.words), ("img2img-told", lambda task: (task.told,))):
        if wanted(name, single):
            for strength in methods.strengths:
                row = {"method": name, "strength": strength}
                yield Run(row, texts(of), [task.shown for task in tasks], strength)
    if wanted("interpolation", shown and len(tasks[0].shown) == 2):
        for strength in methods.strengths:
            row = {"method": "interpolation", "strength": strength}
            yield Run(row, [None] * len(tasks), [task.shown for task in tasks], strength)


def _weighted(prompt: Prompt, theta: float, site: Any) -> Prompt:
    if site == "any":
        return prompt
    elements = [
        dataclasses.replace(one, weight=theta) if isinstance(one, Image) else one for one in prompt.elements
    ]
    return dataclasses.replace(prompt, elements=tuple(elements), site=site)


def evaluate(
    pipe: Pipeline,
    world: World,
    parts: Sequence[str],
    methods: Methods,
    settings: Evaluation,
    *,
    sheets: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """{"settings", part: [a row for each method, with its scores]}. settings: their count is the prompts of a part.

    sheets: a folder for a contact sheet of each row: the first prompts' pictures, over what is right.
    Raises UserError for an unknown part, and where NaN or infinity arose in a picture.
    """
    bench, scorer = Benchmark(world, settings.count), Scorer(world)
    result: dict[str, Any] = {"settings": {**_about(bench, parts), **settings.sampling.recorded()}}
    for part in parts:
        tasks = bench.tasks(part)
        result[part] = []
        for run in runs(world, tasks, methods) if tasks else ():
            what = " ".join(str(value) for value in (part, *run.row.values()))
            pictures = _drawn(pipe, world, run, settings, functools.partial(progress, what))
            result[part].append({**run.row, "prompts": len(tasks), **scorer.score(tasks, pictures)})
            if sheets is not None:
                file = make_directory(sheets) / f"{what.replace(' ', '_')}.png"
                save_png(file, sheet(world, tasks, pictures), {})
    return result


def _drawn(
    pipe: Pipeline, world: World, run: Run, settings: Evaluation, progress: Callable[[int, int], None]
) -> UInt8[np.ndarray, "N 64 64 3"]:
    """The pictures of a row, at the size that is judged, whatever the model's own."""
    count, init, sampling = 0, None, settings.sampling
    height, width = image_size(pipe.model, sampling.height, sampling.width)

    def done(more: int) -> None:
        nonlocal count
        count += more
        progress(count, len(run.prompts))

    if run.starts is not None:
        pixels = np.stack(
            [
                np.stack([to_vae_pixels(world.render(one, SIDE), height, width) for one in sights])
                for sights in run.starts
            ]
        )
        init = InitImages(pixels, np.full(pixels.shape[:2], 1 / pixels.shape[1], np.float32))
        sampling = sampling.changed(strength=run.strength)
    pictures = draw(pipe, run.prompts, dataclasses.replace(settings, sampling=sampling), done, init)
    if (height, width) == (SIDE, SIDE):
        return pictures
    return np.stack([to_uint8(to_vae_pixels(picture, SIDE, SIDE)) for picture in pictures])


def judge_folder(world: World, folder: Path, parts: Sequence[str], count: int = COUNT) -> dict[str, Any]:
    """The scores of pictures named by prompt id. Raises UserError as `read_folder`."""
    bench, scorer = Benchmark(world, count), Scorer(world)
    result: dict[str, Any] = {"settings": {**_about(bench, parts), "pictures": str(folder)}}
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
    shown = make_directory(folder / "shown")
    lines = []
    for part in parts:
        for task in bench.tasks(part):
            elements: list[Any] = []
            for number, one in enumerate(task.elements):
                name = f"shown/{task.id}-{number}.png"
                if isinstance(one, Sight):
                    save_png(shown.parent / name, world.render(one, SIDE), {})
                elements.append(one if isinstance(one, str) else {"image": name})
            lines.append(
                json.dumps({"id": task.id, "prompt": elements, "told": task.told}, ensure_ascii=False)
            )
    write_file(folder / PROMPTS_FILE, "\n".join(lines) + "\n")
    return len(lines)


def _about(bench: Benchmark, parts: Sequence[str]) -> dict[str, Any]:
    return {
        "count": bench.count,
        "subjects": len(bench.world.subjects),
        "pictures of the world": len(bench.world.pairs),
        "prompts": bench.digest(parts),
    }


def sheet(
    world: World, tasks: Sequence[BenchTask], pictures: UInt8[np.ndarray, "N 64 64 3"], most: int = 16
) -> Any:
    """The first prompts of a part, unpicked: what is shown, what was drawn, what is right, a column each."""
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rows: list[list[np.ndarray]] = [[] for _ in range(4)]
    for task, picture in list(zip(tasks, pictures, strict=True))[:most]:
        shown = [world.render(one, SIDE) for one in task.shown][:2]
        for row, one in zip(
            rows, [*shown, *[blank] * (2 - len(shown)), picture, world.render(task.target, SIDE)], strict=True
        ):
            row.append(one)
    return grid([one for row in rows for one in row], len(rows[0]))


def check(parts: Sequence[str]) -> None:
    """Raises UserError for an unknown part."""
    for name in [name for name in parts if name not in PARTS]:
        raise UserError(f"unknown part {name!r}; accepted: {', '.join(PARTS)}")


def as_markdown(result: dict[str, Any]) -> str:
    """A table for each kind of score, in percent; pixels in levels of 255."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for part in [name for name in result if name != "settings"]:
        for row in result[part]:
            names = tuple(
                n for n in row if n not in ("method", "theta", "site", "strength", "prompts", "pixels")
            )
            how = [row["method"], *(f"{key} {row[key]:g}" for key in ("theta", "strength") if key in row)]
            how += [row["site"]] if row.get("site", "any") != "any" else []
            cells = [part, " ".join(how), str(row["prompts"]), *(f"{100 * row[name]:.1f}" for name in names)]
            cells.append(f"{row['pixels']:.1f}" if "pixels" in row else "")
            tables.setdefault(names, []).append(f"| {' | '.join(cells)} |")
    blocks = []
    for names, lines in tables.items():
        head = ["part", "method", "prompts", *(name.replace("_", " at ") for name in names), "pixels"]
        blocks.append("\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]))
    return "\n\n".join(blocks)
