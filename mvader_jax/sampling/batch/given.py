"""A list of prompts given in Python, drawn in batches as those of a file are; the pictures stay in memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import gather_rows
from mvader_jax.prompt.elements import Image, Prompt
from mvader_jax.prompt.length import notice
from mvader_jax.sampling.batch.prepare import Preparer
from mvader_jax.sampling.batch.requests import KEYS, Problem, Request
from mvader_jax.sampling.batch.run import Drawn, drawing
from mvader_jax.sampling.batch.shapes import Item, places_of, plan, shapes
from mvader_jax.sampling.pictures import NotFiniteError, Pictures
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import NAMES, SamplingSettings, image_count
from mvader_jax.sampling.steps import Line
from mvader_jax.settings import nearest

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import PromptLike

    #: What `Pipeline.__call__` takes, or a line of a file of prompts with such a prompt in it.
    Given: TypeAlias = PromptLike | Mapping[str, Any]

_KEYS = tuple(key for key in KEYS if key != "id")
#: What settings say of a prompt, where they say it.
_MEANING = {field.name for field in dataclasses.fields(Prompt)} & set(NAMES)


def read_given(
    prompts: Sequence[Given], defaults: SamplingSettings, negative: PromptLike | None, num_images: int
) -> list[Request]:
    """The prompts as requests, numbered from 1. Raises UserError, which names the first that cannot be drawn."""
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Sequence):
        raise UserError(f"prompts is {prompts!r:.80}; expected a list of prompts")
    whole: dict[str, Any] = {"negative": negative, "num_images": num_images}
    requests = []
    for number, prompt in enumerate(prompts, start=1):
        line = {**whole, **(prompt if isinstance(prompt, Mapping) else {"prompt": prompt})}
        with _naming(number):
            requests.append(_request(number, line, defaults))
    return requests


def _request(number: int, line: Mapping[str, Any], defaults: SamplingSettings) -> Request:
    for key in line:
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r}; {nearest(str(key), _KEYS)}")
    if "prompt" not in line:
        raise UserError("it has no 'prompt'")
    settings = defaults.changed(**{key: line[key] for key in NAMES if line.get(key) is not None})
    init = None if line.get("init_image") is None else Image(line["init_image"])
    if init is None and settings.strength is not None:
        raise UserError("strength belongs to an init_image, but there is none to start from")
    count = image_count(1 if line["num_images"] is None else line["num_images"])
    settings.numbered(count)
    prompt, negative = _prompt(line["prompt"], settings), None
    if line["negative"] is not None and settings.negative_strength:  # a strength of 0 is the null prompt
        negative = _prompt(line["negative"], settings)
    elif line["negative"] is None and settings.negative_strength != 1.0:
        raise UserError(
            f"negative_strength is {settings.negative_strength:g}, but there is no negative prompt"
        )
    return Request(number, str(number), prompt, negative, count, settings, {}, init_image=init)


def _prompt(value: Any, settings: SamplingSettings) -> Prompt:
    parts = value if isinstance(value, (list, tuple)) else [value]
    read = Prompt.from_json if any(isinstance(part, Mapping) for part in parts) else Prompt.of
    said = {name: getattr(settings, name) for name in _MEANING if getattr(settings, name) is not None}
    return dataclasses.replace(read(value), **said)


@contextlib.contextmanager
def _naming(number: int) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from None


def draw_all(pipe: Pipeline, requests: Sequence[Request], *, size: int, progress: bool) -> list[Pictures]:
    """The pictures of every request, in order.

    Every process of a mesh calls this with the same requests. Raises UserError for a request that cannot be drawn,
    before any is where its prompt tells; NotFiniteError at the end, where pictures {(prompt, picture)} are missing.
    """
    preparer = Preparer(pipe, size + -size % pipe.shards)
    shape_of, unfit = shapes(pipe.bundle, requests, lambda said: notice(f"prompt{said.removeprefix('line')}"))
    _refuse(unfit)
    items = [Item(request, index) for request in requests for index in range(request.count)]
    batches = plan([(item, shape_of[item.request.line]) for item in items], preparer.size)
    preparer.places = places_of(batches, preparer.size)
    good: dict[tuple[int, int], PIL.Image.Image] = {}
    line, done, waiting = Line("drawing", "pictures", progress), 0, list[Drawn]()

    def finish(drawn: Drawn) -> None:
        nonlocal done
        found = drawn.prepared.items
        good.update(_pictures(found, gather_rows(drawn.pixels), gather_rows(drawn.finite), pipe.loaded))
        done += len(found)
        line.update(done, len(items))

    with contextlib.closing(drawing(pipe, preparer, batches, _refuse)) as under_way:
        try:
            for drawn in under_way:
                waiting.append(drawn)
                if len(waiting) > 1:  # one is computed while another is fetched
                    finish(waiting.pop(0))
            for drawn in waiting:
                finish(drawn)
        finally:
            line.end()
    wanted = [(item.request.line, item.index) for item in items]
    if len(good) < len(wanted):
        raise NotFiniteError(wanted, good)
    return [Pictures(good[request.line, i] for i in range(request.count)) for request in requests]


def _refuse(problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise UserError(f"prompt {problem.line}: {problem.reason}")


def _pictures(
    items: Sequence[Item], pixels: np.ndarray, finite: np.ndarray, loaded: Mapping[str, Any]
) -> dict[tuple[int, int], PIL.Image.Image]:
    found = {}
    for item, picture, whole in zip(items, pixels, finite, strict=False):
        if whole:
            drawn = PIL.Image.fromarray(picture)
            drawn.info.update(item.request.note(item.index, loaded))
            found[item.request.line, item.index] = drawn
    return found
