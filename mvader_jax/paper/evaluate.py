"""What a bundle trained on scenes can do, on held-out scenes, judged by the scenes' own reader."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.bounds import PositiveInt
from mvader_jax.data.scenes.captions import Language, caption
from mvader_jax.data.scenes.judge import SCORES, compare, read_scene
from mvader_jax.data.scenes.world import Scene, render
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import unit_to_uint8
from mvader_jax.paper.curves import TASKS, Curves, held_out, shares
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.sampling.generate import Draws, InitImages, Prompted
from mvader_jax.sampling.output import check_writable
from mvader_jax.sampling.pictures import not_finite
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings, StaticSettings
from mvader_jax.settings import Checked
from mvader_jax.storage.atomic import local, write_file

#: Parts that are tables of attributes, and all there are.
ATTRIBUTES = ("reader", "reconstruction", "text", "variation")
PARTS = (*ATTRIBUTES, *TASKS)
#: Those that `mvader evaluate` asks for where none are named.
DEFAULT = (*ATTRIBUTES, "change")
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluation(Checked):
    """count: scenes that a bundle is judged on; batch: pictures per call of the program; sampling: how they
    are drawn."""

    count: PositiveInt = 500
    batch: PositiveInt = 50
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Pictures laid out on the host for the calls of one program. count: of them; what is beyond fills up the last."""

    calls: Sequence[Draws]
    static: StaticSettings
    count: int


def prepare(
    pipe: Pipeline,
    prompts: Sequence[Prompt | None],
    settings: Evaluation,
    init: InitImages | None = None,
    *,
    length: int | None = None,
) -> Prepared:
    """Calls for one picture per prompt, picture i from noise i of the seed.

    init: what each starts from, at the settings' strength. length: positions of a prompt; default, what the longest
    needs.
    """
    size, sampling = settings.batch, settings.sampling
    null = Prompted(pipe.bundle.to_batch([None]))
    length = length or _length(pipe, prompts)
    calls = []
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        # The last call is filled up, so that every call runs the same program.
        padded = part + part[-1:] * (size - len(part))
        rows = Prompted(
            pipe.bundle.to_batch(padded, length=length, site=sampling.site, balance=sampling.balance)
        )
        begin = None
        if init is not None:
            which = np.minimum(np.arange(start, start + size), len(prompts) - 1)
            begin = InitImages(np.asarray(init.pixels)[which], np.asarray(init.shares)[which])
        calls.append(Draws.of(sampling, rows, null, np.arange(start, start + size), init=begin))
    return Prepared(calls, sampling.static(pipe.model, from_image=init is not None), len(prompts))


def drawn(pipe: Pipeline, prepared: Prepared, done: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """The pictures, uint8 [N, H, W, 3]. Raises UserError where NaN or infinity arose in one."""
    pictures: list[np.ndarray] = []
    left = prepared.count
    for draws in prepared.calls:
        pixels, finite = pipe.generate(draws, prepared.static)
        here = min(left, len(pixels))
        left -= here
        bad = int(np.sum(~np.asarray(finite)[:here]))
        if bad:
            raise UserError(not_finite(f"{bad} of {here} pictures"))
        pictures.append(np.asarray(pixels)[:here])
        done(here)
    return np.concatenate(pictures)


def draw(
    pipe: Pipeline,
    prompts: Sequence[Prompt | None],
    settings: Evaluation,
    done: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """`drawn` of `prepare`, in calls of no more pictures than there are prompts."""
    settings = dataclasses.replace(settings, batch=min(settings.batch, len(prompts)))
    return drawn(pipe, prepare(pipe, prompts, settings), done)


def _as_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] -> uint8. Raises UserError where they hold NaN."""
    if not np.all(np.isfinite(images)):
        raise UserError(not_finite("reconstructed pictures"))
    return unit_to_uint8(images)


def _length(pipe: Pipeline, prompts: Sequence[Prompt | None]) -> int:
    return max(pipe.bundle.to_batch([prompt]).token_ids.shape[1] for prompt in prompts)


def attribute_scores(truths: Sequence[Scene], pictures: Iterable[np.ndarray]) -> dict[str, float]:
    """Mean of every score of `compare` over pictures: shares in 0..1."""
    rows = [compare(truth, read_scene(p)) for truth, p in zip(truths, pictures, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in SCORES}


def text_prompts(scenes: Sequence[Scene]) -> list[Prompt]:
    """Captions that name every attribute, in English and German by turns."""
    languages: tuple[Language, ...] = ("en", "de")
    return [
        Prompt((Text(caption(scene, np.random.default_rng(i), languages[i % 2])),))
        for i, scene in enumerate(scenes)
    ]


def check(parts: Sequence[str]) -> None:
    """Raises UserError for an unknown part."""
    for name in [name for name in parts if name not in PARTS]:
        raise UserError(f"unknown part {name!r}; accepted: {', '.join(PARTS)}")


def evaluate(
    pipe: Pipeline,
    settings: Evaluation,
    parts: Sequence[str] = DEFAULT,
    *,
    curves: Curves | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """The tables by part. Raises UserError as `check`, and where NaN or infinity arose in a picture."""
    check(parts)
    scenes = held_out(settings.count)
    truth = np.stack([render(scene) for scene in scenes])
    recorded = {"count": settings.count, "batch": settings.batch}
    recorded |= settings.sampling.recorded() | pipe.recorded_lora
    result: dict[str, Any] = {"settings": recorded}

    def drawn(what: str, prompts: Sequence[Prompt]) -> np.ndarray:
        count = 0

        def done(more: int) -> None:
            nonlocal count
            count += more
            progress(what, count, len(prompts))

        return draw(pipe, prompts, settings, done)

    if "reader" in parts:
        result["reader"] = attribute_scores(scenes, truth)
    if "reconstruction" in parts:
        steps = range(0, len(truth), settings.batch)
        decoded = [np.asarray(pipe.decode(pipe.encode(truth[at : at + settings.batch]))) for at in steps]
        result["reconstruction"] = attribute_scores(scenes, _as_uint8(np.concatenate(decoded)))
    if "text" in parts:
        result["text"] = attribute_scores(scenes, drawn("text", text_prompts(scenes)))
    if "variation" in parts:
        images = [Prompt((Image(picture),)) for picture in truth]
        result["variation"] = attribute_scores(scenes, drawn("variation", images))
    for name in [name for name in TASKS if name in parts]:
        result[name] = _curve(name, settings.count, curves or Curves(), drawn)
    return result


def _curve(
    name: str, count: int, curves: Curves, drawn: Callable[[str, Sequence[Prompt]], np.ndarray]
) -> dict[str, Any]:
    """A task's shares at every theta and site. drawn: (what, prompts) -> their pictures."""
    asked = TASKS[name].asks(count, curves)
    rows = []
    for theta, site in curves.points:
        prompts = [one.prompt(theta, "both" if site == "any" else site, curves.balance) for one in asked]
        pictures = drawn(f"{name}, theta {theta:g}, {site}", prompts)
        rows.append({"site": site, "theta": theta, **shares(asked, pictures)})
    options = {option: getattr(curves, option) for option in TASKS[name].options}
    return {**options, "balance": curves.balance, "rows": rows}


def as_markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown, in percent."""
    lines = []
    named = [name for name in ATTRIBUTES if name in result]
    if named:
        lines += ["| | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
        for name in named:
            lines.append(f"| {name} | " + " | ".join(f"{100 * result[name][s]:.1f}" for s in SCORES) + " |")
    for task in [task for task in TASKS if task in result]:
        rows = result[task]["rows"]
        names = [name for name in rows[0] if name not in ("site", "theta")]
        lines += ["", f"| {task}, at | theta | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
        lines.append("|---" * (len(names) + 2) + "|")
        for row in rows:
            values = " | ".join(f"{100 * row[name]:.1f}" for name in names)
            lines.append(f"| {row['site']} | {row['theta']:g} | {values} |")
    return "\n".join(lines)


def check_place(path: Path, parts: Sequence[str] = PARTS) -> None:
    """Raises UserError where the numbers could not be written, or would replace what is no evaluation's."""
    check_writable(local(path).parent)
    if not os.path.lexists(path) or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # nothing, or a device such as /dev/stdout
    try:
        known = set(json.loads(path.read_text(encoding="utf-8"))) <= {"settings", *parts}
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{str(path)!r} exists already and holds no numbers of an evaluation; choose another --out"
        )


def save(result: dict[str, Any], path: str | Path) -> None:
    """Writes the result as JSON. Raises UserError where it cannot be written."""
    write_file(path, json.dumps(result, indent=1) + "\n")
