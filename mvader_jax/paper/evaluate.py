"""What a bundle trained on scenes can do, on held-out scenes, judged by the scenes' own reader."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvader_jax.bounds import NonNegativeFloat, PositiveInt
from mvader_jax.data.scenes.captions import Language, caption
from mvader_jax.data.scenes.judge import SCORES, compare, read_scene
from mvader_jax.data.scenes.world import COLORS, Scene, render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_uint8
from mvader_jax.prompt.elements import SITES, Element, Image, Prompt, Text
from mvader_jax.sampling.generate import Draws, Prompted
from mvader_jax.sampling.output import check_writable
from mvader_jax.sampling.pipeline import Pipeline, not_finite
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.settings import Checked
from mvader_jax.storage.atomic import local, write_file

#: theta of the image in the element-change curves.
THETAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0)
#: What the text beside the image says; {color} is the new colour's name. Worded as captions are.
PHRASE = "a {color} shape"
PARTS = ("reader", "reconstruction", "text", "variation", "change")
Order = Literal["text first", "image first"]
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluation(Checked):
    """count: scenes that a bundle is judged on; batch: pictures per call of the program; sampling: how they
    are drawn."""

    count: PositiveInt = 500
    batch: PositiveInt = 50
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)


@dataclasses.dataclass(frozen=True)
class Curves(Checked):
    """What the element-change curves compare.

    thetas: of the image; sites: where they act; order: of the text and the image; balance: thetas as shares;
    phrase: what the text says, {color} being the new colour's name. Raises UserError for a phrase without it.
    """

    thetas: tuple[NonNegativeFloat, ...] = THETAS
    sites: tuple[str, ...] = ("decoder", "cross_attention", "both")
    order: Order = "text first"
    balance: bool = False
    phrase: str = PHRASE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in [name for name in self.sites if name not in SITES]:
            raise UserError(f"unknown site {name!r}; accepted: {', '.join(SITES)}")
        if "{color}" not in self.phrase:
            raise UserError(
                f"the phrase {self.phrase!r} names no colour; expected {{color}} in it, as in {PHRASE!r}"
            )


def held_out(count: int, two_objects: float = 0.3) -> list[Scene]:
    """The first `count` scenes of the validation split, which training never shows."""
    return [scene_at(0, index, "validation", two_objects) for index in range(count)]


def draw(
    pipe: Pipeline,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    done: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """One picture per prompt, picture i from noise i of the seed: uint8 [N, H, W, 3].

    Raises UserError where NaN or infinity arose in one.
    """
    pictures = []
    size, sampling = min(settings.batch, len(prompts)), settings.sampling
    null = pipe.bundle.to_batch([None])
    length = _length(pipe, prompts)
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        # The last call is filled up, so that every call runs the same program.
        padded = part + part[-1:] * (size - len(part))
        rows = Prompted(
            pipe.bundle.to_batch(padded, length=length, site=sampling.site, balance=sampling.balance)
        )
        draws = Draws.of(sampling, rows, Prompted(null), np.arange(start, start + size))
        pixels, finite = pipe.generate(draws, sampling.static(pipe.model))
        bad = int(np.sum(~np.asarray(finite)[: len(part)]))
        if bad:
            raise UserError(not_finite(f"{bad} of {len(part)} pictures"))
        pictures.append(np.asarray(pixels)[: len(part)])
        done(len(part))
    return np.concatenate(pictures)


def _as_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] -> uint8. Raises UserError where they hold NaN."""
    if not np.all(np.isfinite(images)):
        raise UserError(not_finite("reconstructed pictures"))
    return to_uint8(images)


def _length(pipe: Pipeline, prompts: Sequence[Prompt]) -> int:
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


def change_prompts(
    scenes: Sequence[Scene],
    theta: float,
    site: Any,
    order: Order = "text first",
    balance: bool = False,
    phrase: str = PHRASE,
) -> tuple[list[Prompt], list[str]]:
    """([text naming a new colour, image of weight theta], the colours); one-object scenes."""
    prompts, colors = [], []
    for i, scene in enumerate(scenes):
        others = [color for color in COLORS if color != scene.objects[0].color]
        color = others[i % len(others)]
        elements: list[Element] = [Text(phrase.replace("{color}", color)), Image(render(scene), weight=theta)]
        prompts.append(Prompt(tuple(elements if order == "text first" else elements[::-1]), site, balance))
        colors.append(color)
    return prompts, colors


def change_scores(
    scenes: Sequence[Scene], colors: Sequence[str], pictures: Iterable[np.ndarray]
) -> dict[str, float]:
    """Shares of pictures with the text's colour, with the image's colour, shape, and the text's colour
    and the image's shape at once (one-object scenes; no object in the picture counts as nothing right)."""
    found = [read_scene(picture).objects for picture in pictures]
    rows = [
        (
            things[0].color == color,
            things[0].color == scene.objects[0].color,
            things[0].shape == scene.objects[0].shape,
            things[0].color == color and things[0].shape == scene.objects[0].shape,
        )
        if things
        else (False,) * 4
        for scene, color, things in zip(scenes, colors, found, strict=True)
    ]
    names = ("text_color", "image_color", "image_shape", "both")
    return dict(zip(names, np.mean(np.asarray(rows, np.float64), axis=0).tolist(), strict=True))


def check(parts: Sequence[str]) -> None:
    """Raises UserError for an unknown part."""
    for name in [name for name in parts if name not in PARTS]:
        raise UserError(f"unknown part {name!r}; accepted: {', '.join(PARTS)}")


def evaluate(
    pipe: Pipeline,
    settings: Evaluation,
    parts: Sequence[str] = PARTS,
    *,
    curves: Curves | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """The tables by part. Raises UserError as `check`, and where NaN or infinity arose in a picture."""
    check(parts)
    scenes = held_out(settings.count)
    truth = np.stack([render(scene) for scene in scenes])
    recorded = {"count": settings.count, "batch": settings.batch, **settings.sampling.recorded()}
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
    if "change" in parts:
        result["change"] = _change(settings, curves or Curves(), drawn)
    return result


def _change(
    settings: Evaluation, curves: Curves, drawn: Callable[[str, Sequence[Prompt]], np.ndarray]
) -> dict[str, Any]:
    """The element-change curves. drawn: (what, prompts) -> their pictures."""
    single = held_out(settings.count, two_objects=0.0)
    thetas, order, balance, phrase = curves.thetas, curves.order, curves.balance, curves.phrase
    rows = []
    # Where theta is 1 the site makes no difference, unless balanced: the prompt is the plain one.
    plain = [(1.0, "any")] if 1.0 in thetas and not balance else []
    for theta, site in plain + [(t, s) for s in curves.sites for t in thetas if t != 1.0 or balance]:
        where = "both" if site == "any" else site
        prompts, colors = change_prompts(single, theta, where, order, balance, phrase)
        pictures = drawn(f"change, theta {theta:g}, {site}", prompts)
        rows.append({"site": site, "theta": theta, **change_scores(single, colors, pictures)})
    return {"order": order, "balance": balance, "phrase": phrase, "rows": rows}


def as_markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown, in percent."""
    lines = []
    named = [name for name in PARTS[:-1] if name in result]
    if named:
        lines += ["| | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
        for name in named:
            lines.append(f"| {name} | " + " | ".join(f"{100 * result[name][s]:.1f}" for s in SCORES) + " |")
    if "change" in result:
        rows = result["change"]["rows"]
        names = [name for name in rows[0] if name not in ("site", "theta")]
        lines += ["", "| site | theta | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
        lines.append("|---" * (len(names) + 2) + "|")
        for row in rows:
            values = " | ".join(f"{100 * row[name]:.1f}" for name in names)
            lines.append(f"| {row['site']} | {row['theta']:g} | {values} |")
    return "\n".join(lines)


def check_place(path: Path) -> None:
    """Raises UserError where the numbers could not be written, or would replace what is no evaluation's."""
    check_writable(local(path).parent)
    if not os.path.lexists(path) or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # nothing, or a device such as /dev/stdout
    try:
        known = set(json.loads(path.read_text(encoding="utf-8"))) <= {"settings", *PARTS}
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{str(path)!r} exists already and holds no numbers of an evaluation; choose another --out"
        )


def save(result: dict[str, Any], path: str | Path) -> None:
    """Writes the result as JSON. Raises UserError where it cannot be written."""
    write_file(path, json.dumps(result, indent=1) + "\n")
