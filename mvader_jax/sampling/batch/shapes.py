"""Which pictures are drawn together: prompts of like length share a compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mvader_jax.condition import PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.embed import embedder_of
from mvader_jax.prompt.elements import Image, Prompt
from mvader_jax.sampling.arguments import check_negative
from mvader_jax.sampling.batch.requests import Problem, Request
from mvader_jax.sampling.settings import StaticSettings
from mvader_jax.storage.bundle import Bundle


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """What a compiled program is made for. static: its settings; factors: shapes of the prompts' factors by
    layer and head, and of the shares of attention that their elements want; both: whether the null prompt is needed
    beside negative prompts of a strength of their own; length: positions of prompts and negative prompts; images:
    places for images in a prompt; start: the step at which they begin that start from a picture, -1 of the others."""

    static: StaticSettings
    factors: tuple[tuple[int, ...], ...]
    both: bool
    length: int
    images: int
    start: int = -1

    def holds(self, other: Shape) -> bool:
        """Whether prompts of the other shape may be drawn in this one."""
        names = ("static", "factors", "both", "start")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and self.length >= other.length and self.images >= other.images


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture: number `index` of a request's."""

    request: Request
    index: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures drawn by one call; up to the batch's size, which the last of a shape may not reach."""

    shape: Shape
    items: tuple[Item, ...]


def layout(bundle: Bundle, prompts: Sequence[Prompt | None], **options: Any) -> PromptBatch:
    """Prompts laid out without reading their images: `pixels` is [B, I, 0, 0, 3]."""
    count = sum(isinstance(e, Image) for p in prompts if p for e in p.elements)
    if embedder_of(bundle.model).image_encoder is None:
        return bundle.to_batch(prompts, **options)
    blank = np.zeros((count, 0, 0, 3), np.float32)
    return bundle.to_batch(prompts, image_size=0, pixels=blank, **options)


def shapes(
    bundle: Bundle, requests: Iterable[Request], say: Callable[[str], None] = lambda _: None
) -> tuple[dict[int, Shape], list[Problem]]:
    """The shape of every request by its line, and the requests that do not fit the model.

    say: told once what a user should know of prompts like a line's.
    """
    told: dict[str, int] = {}
    found: dict[int, Shape] = {}
    problems: list[Problem] = []
    known: dict[tuple[Prompt, Prompt | None], _Measured | UserError] = {}
    for request in requests:
        pair = (request.prompt, request.negative)
        if pair not in known:
            try:
                known[pair] = _measure(bundle, *pair, lambda said: told.setdefault(said, request.line))  # noqa: B023
            except UserError as error:
                known[pair] = error
        measured = known[pair]
        try:
            if isinstance(measured, UserError):
                raise measured
            check_negative(bundle.model, request.negative is not None)
            from_image = request.init_image is not None
            static = request.settings.static(bundle.model, from_image=from_image, changed=bundle.changed)
        except UserError as error:
            problems.append(Problem(request.line, str(error)))
            continue
        factors, length, images = measured
        both = request.negative is not None and request.settings.negative_strength != 1.0
        start = request.settings.start() if from_image else -1
        found[request.line] = Shape(static, factors, both, length, images, start)
    for said, line in told.items():
        say(f"line {line}: {said}")
    return found, problems


#: Shapes of factors, positions, places for images.
_Measured: TypeAlias = tuple[tuple[tuple[int, ...], ...], int, int]


def _measure(
    bundle: Bundle, prompt: Prompt, negative: Prompt | None, notify: Callable[[str], Any]
) -> _Measured:
    rows = [layout(bundle, [one], notify=notify) for one in (prompt, negative)]
    factors = tuple(
        tuple(np.shape(getattr(row, name))[1:])
        for row in rows
        for name in ("factors", "condition_factors", "wanted")
        if getattr(row, name, None) is not None
    )
    images = rows[0].pixels.shape[1]
    return factors, max(row.token_ids.shape[1] for row in rows), images and 1 << (images - 1).bit_length()


def plan(
    items: Iterable[tuple[Item, Shape]], size: int, places: Mapping[Shape, int] | None = None
) -> list[Batch]:
    """Batches of `size` pictures, the longest prompts first, in the order of the file within a shape.

    places: how many different prompts a batch of a shape holds at most (`places_of`), as many as it likes by default.

    What is left over of a shape joins the next larger one that holds it, so that a few odd prompts cost
    neither a program of their own nor a batch that is mostly filling.
    """
    waiting: dict[Shape, list[Item]] = {}
    for item, shape in items:
        waiting.setdefault(shape, []).append(item)
    batches: list[Batch] = []
    order = sorted(waiting)
    for place, shape in enumerate(order):
        mine = waiting[shape]
        over = len(mine) % size
        larger = next((other for other in order[place + 1 :] if other.holds(shape)), None)
        if over and larger is not None:
            waiting[larger] = mine[len(mine) - over :] + waiting[larger]
            mine = mine[: len(mine) - over]
        several = size if places is None else places.get(shape, size)
        batches += [Batch(shape, part) for part in _parts(mine, size, several)]
    # What does not fit into memory says so at once, and not after a day.
    return sorted(batches, key=lambda batch: (batch.shape.length, batch.shape.images), reverse=True)


def _parts(items: Sequence[Item], size: int, places: int) -> Iterator[tuple[Item, ...]]:
    part: list[Item] = []
    prompts: set[Prompt] = set()
    for item in items:
        new = item.request.prompt not in prompts
        if len(part) == size or (new and len(prompts) == places):
            yield tuple(part)
            part, prompts = [], set()
        part.append(item)
        prompts.add(item.request.prompt)
    if part:
        yield tuple(part)


def places_of(batches: Iterable[Batch], size: int) -> dict[Shape, int]:
    """How many prompts a program of each shape embeds for batches of `size`.

    As many as its most varied batch holds, a power of two, where that is half of the rows or less: equal prompts of a
    batch are then embedded once. One number for all batches of a shape, so that one program draws them.
    """
    found: dict[Shape, int] = {}
    for batch in batches:
        several = len({item.request.prompt for item in batch.items})
        found[batch.shape] = max(found.get(batch.shape, 1), 1 << (several - 1).bit_length())
    return {shape: places if 2 * places <= size else size for shape, places in found.items()}
