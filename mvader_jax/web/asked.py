"""What a page asks for: the rows of a prompt and how to draw it, as data that goes to and from the browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from mvader_jax.bounds import NonNegativeInt, PositiveInt, Share, any_number, between
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Element, Image, Prompt, Text
from mvader_jax.sampling.attention import Attention
from mvader_jax.sampling.pictures import Pictures
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import FAST, STRENGTH, SamplingSettings
from mvader_jax.sampling.tasks import TASKS, run_task
from mvader_jax.settings import Checked, from_dict, to_dict
from mvader_jax.web.store import Store, safe_name

#: Pictures of one drawing, rows of one prompt, and cells of one sweep.
MOST_PICTURES, MOST_PARTS, MOST_CELLS = 16, 16, 64
#: A weight as a command has it: more digits than a slider gives.
_Weight = Annotated[float, between(0, 1e6)]


@dataclasses.dataclass(frozen=True)
class Words(Checked):
    """A factor on the weight of some words of a text."""

    words: str
    weight: _Weight = 1.0


@dataclasses.dataclass(frozen=True)
class Region(Checked):
    """A factor on the weight of a region of a picture. mask: the id of a picture, white where it lies; or box: left, top,
    right, bottom in [0, 1]."""

    mask: str | None = None
    weight: _Weight = 1.0
    box: tuple[Share, Share, Share, Share] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mask is None) == (self.box is None):
            raise UserError("a region is either a mask or a box")


@dataclasses.dataclass(frozen=True)
class Part(Checked):
    """A row of the prompt: a text, or the id of a picture and the name of its file."""

    text: str | None = None
    picture: str | None = None
    name: str = "picture.png"
    weight: _Weight = 1.0
    words: tuple[Words, ...] = ()
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text is None) == (self.picture is None):
            raise UserError("a row of the prompt is either a text or a picture")
        if (self.picture is not None and self.words) or (self.text is not None and self.regions):
            raise UserError("words belong to a text, regions to a picture")
        object.__setattr__(self, "name", safe_name(self.name))

    def element(self, store: Store) -> Element:
        """The element of a prompt. Raises UserError for an empty text, and for pictures that are gone."""
        if self.text is not None:
            return Text(self.text, self.weight, {one.words: one.weight for one in self.words})
        regions = [(one.box or mask(store, one.mask), one.weight) for one in self.regions]
        return Image(store.get(self.picture).image(), self.weight, regions)


@dataclasses.dataclass(frozen=True)
class Asked(Checked):
    """A prompt and how to draw it.

    task: what pictures of the prompt are where they are no part of it: what sampling starts from, noised to
    `strength`, two of them mixed by `fraction`. first: the number of the first picture under its seed. fast: with the
    UNet of few steps.
    """

    parts: tuple[Part, ...] = ()
    negative: tuple[Part, ...] = ()
    settings: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    num_images: PositiveInt = 1
    first: NonNegativeInt = 0
    task: Literal["img2img", "interpolation"] | None = None
    strength: Share = STRENGTH
    fraction: Share = 0.5
    fast: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) + len(self.negative) > MOST_PARTS:
            raise UserError(f"the prompt has more than {MOST_PARTS} rows, the most that the page takes")
        if len(self.settings.numbered(self.num_images)) > MOST_PICTURES:
            raise UserError(
                f"more than {MOST_PICTURES} pictures at once; the page draws up to {MOST_PICTURES}"
            )
        pictures: dict[str, str] = {}
        rows = {}
        for field in ("parts", "negative"):
            rows[field] = tuple(_named(part, pictures) for part in getattr(self, field))
        for field, parts in rows.items():
            object.__setattr__(self, field, parts)

    @classmethod
    def of(cls, value: Any) -> Asked:
        """From what the browser sends. Raises UserError for anything else."""
        return from_dict(cls, value, "the prompt")

    def to_json(self) -> dict[str, Any]:
        """The inverse of `of`."""
        return dict(to_dict(self))

    @property
    def options(self) -> dict[str, float]:
        """What the task takes beside its pictures and texts."""
        if self.task is None:
            return {}
        mixed = {"fraction": self.fraction} if self.task == "interpolation" else {}
        return {"strength": self.strength, **mixed}

    def elements(self, store: Store) -> tuple[Element, ...]:
        """Those of the prompt, the task's pictures among them. Raises UserError where there are none, or too few."""
        if not self.parts:
            raise UserError("the prompt is empty; add a text or a picture")
        pictures = sum(part.picture is not None for part in self.parts)
        if self.task is not None and pictures != TASKS[self.task].images[0]:
            raise UserError(f"the task {self.task} takes {TASKS[self.task].takes}; there are {pictures}")
        return tuple(part.element(store) for part in self.parts)

    def negative_elements(self, store: Store) -> tuple[Element, ...] | None:
        """Those of the negative prompt; None where there is none."""
        return tuple(part.element(store) for part in self.negative) or None

    def prompt(self, store: Store) -> Prompt:
        """The prompt as it is read, with where its weights act."""
        return Prompt(
            self.elements(store),
            site=self.settings.site or "both",
            balance=self.settings.balance or False,
            long_prompts=self.settings.long_prompts or "cut",
        )

    def draw(self, pipe: Pipeline, store: Store, **watch: Any) -> Pictures:
        """The pictures. watch: `callback` and `callback_every` of the pipeline. Errors as the pipeline's."""
        run: Callable[..., Pictures] = pipe
        elements = self.elements(store)
        if self.task is not None:
            return run_task(
                self.task,
                pipe,
                elements,
                settings=self.settings,
                **self._beside(store),
                **self.options,
                **watch,
            )
        return run(elements, self.settings, **self._beside(store), **watch)

    def _beside(self, store: Store) -> dict[str, Any]:
        return {
            "negative": self.negative_elements(store),
            "num_images": self.num_images,
            "first": self.first,
        }

    def attend(self, pipe: Pipeline, store: Store) -> Attention:
        """The pictures, and where in them each element was looked at. Errors as the pipeline's, and for a task."""
        if self.task is not None:
            raise UserError("where it looked is seen of pictures that are drawn from noise; this one was not")
        return pipe.attend(self.elements(store), self.settings, **self._beside(store))

    def alone(self, seed: int, index: int) -> Asked:
        """One of its pictures."""
        settings = self.settings.changed(seed=seed)
        return dataclasses.replace(self, settings=settings, num_images=1, first=index)

    def quick(self) -> Asked:
        """The same in few steps, one picture, for a slider that moves: what a UNet of few steps cannot do is left out."""
        left_out = {"eta": 0.0, "reuse": 1, "guidance_interval": None, "negative_strength": 1.0}
        quick: dict[str, Any] = {**FAST, **left_out, "seed": self.first_seed}
        settings = dataclasses.replace(self.settings, **quick)
        return dataclasses.replace(self, settings=settings, num_images=1, negative=(), fast=True)

    @property
    def first_seed(self) -> int:
        """Of the seeds, the first."""
        return self.settings.numbered(1)[0][0]


@dataclasses.dataclass(frozen=True)
class Slider(Checked):
    """A number of `Asked` that a sweep changes, and the values that it takes.

    of: "parts", "negative" (row `row`'s weight), "words" or "regions" (number `index` of row `row` of the prompt),
    "negative_strength", "guidance_scale", "strength" or "fraction".
    """

    of: Literal[
        "parts", "negative", "words", "regions", "negative_strength", "guidance_scale", "strength", "fraction"
    ]
    values: tuple[Annotated[float, any_number("what it changes has its own bounds")], ...]
    row: NonNegativeInt = 0
    index: NonNegativeInt = 0

    def at(self, asked: Asked, value: float) -> Asked:
        """`asked` with the slider at a value. Raises UserError for a row that is not there, or a bad value."""
        changed: dict[str, Any]
        if self.of in ("negative_strength", "guidance_scale"):
            setting: dict[str, Any] = {self.of: value}
            changed = {"settings": dataclasses.replace(asked.settings, **setting)}
        elif self.of in ("strength", "fraction"):
            changed = {self.of: value}
        elif self.of in ("parts", "negative"):
            changed = {self.of: _with(getattr(asked, self.of), self.row, weight=value)}
        else:
            inner = _with(getattr(_at(asked.parts, self.row), self.of), self.index, weight=value)
            changed = {"parts": _with(asked.parts, self.row, **{self.of: inner})}
        return dataclasses.replace(asked, **changed)


def swept(asked: Asked, across: Slider, down: Slider | None = None) -> list[list[Asked]]:
    """Rows of what is asked, one picture each: `across` changes from left to right, `down` from top to bottom.

    Raises UserError for no value, or more than MOST_CELLS cells.
    """
    rows = [asked] if down is None else [down.at(asked, value) for value in down.values]
    cells = len(rows) * len(across.values)
    if not 1 <= cells <= MOST_CELLS:
        raise UserError(f"the sweep has {cells} pictures; the page draws 1 to {MOST_CELLS}")
    one = [
        dataclasses.replace(row, num_images=1, settings=row.settings.changed(seed=row.first_seed))
        for row in rows
    ]
    return [[across.at(row, value) for value in across.values] for row in one]


def mask(store: Store, id: str | None) -> Any:
    """A painted region as an array [h, w] in [0, 1], as its file would be read."""
    import numpy as np

    return np.asarray(store.get(id).image().convert("L"), np.float32) / 255.0


def _at(rows: Sequence[Any], index: int) -> Any:
    if not 0 <= index < len(rows):
        raise UserError("the sweep's slider is no longer in the prompt")
    return rows[index]


def _with(rows: Sequence[Any], index: int, **changes: Any) -> tuple[Any, ...]:
    changed = dataclasses.replace(_at(rows, index), **changes)
    return tuple(changed if i == index else one for i, one in enumerate(rows))


def _named(part: Part, pictures: dict[str, str]) -> Part:
    """The part, its name one that no other picture of the prompt has. pictures: names of before and whose they are."""
    if part.picture is None:
        return part
    stem, _, ending = part.name.rpartition(".")
    name, count = part.name, 1
    while pictures.setdefault(name, part.picture) != part.picture:
        count += 1
        name = f"{stem}-{count}.{ending}"
    return dataclasses.replace(part, name=name)
