"""What is compared: each row of the benchmark's table, and how its pictures are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from mvader_jax.bounds import NonNegativeFloat, Share
from mvader_jax.data.emoji.world import Sight, World
from mvader_jax.errors import UserError
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.scores import renders
from mvader_jax.paper.emoji.tasks import BenchTask
from mvader_jax.paper.evaluate import Evaluation, Prepared, prepare
from mvader_jax.prompt.elements import SITES, Balance, Image, Prompt, Site, Text
from mvader_jax.sampling.generate import InitImages
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import image_size
from mvader_jax.settings import Checked

#: A prompt whose elements are balanced, as flags of the same names do it.
BALANCED: dict[str, Balance] = {"balance": True, "balance-attention": "attention"}
#: The prompt as it is, and balanced; parts of it alone; and what the paper compares with.
METHODS = ("prompt", *BALANCED, "text", "told", "picture", "img2img", "img2img-told", "interpolation")
#: What of a row tells it from the others of its part.
KEYS = ("method", "theta", "site", "strength")
Elements = Sequence[Sight | str]


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
    """One row of the table: what its pictures are drawn of. elements: of each prompt, none for the null prompt.
    starts: what sampling begins from, where it does not from noise. balance: as `Prompt` has it."""

    row: dict[str, Any]
    elements: Sequence[Elements]
    starts: Sequence[Sequence[Sight]] = ()
    balance: Balance = False

    @property
    def first(self) -> bool:
        """Whether this is the prompt itself, without which nothing else says much."""
        return self.row["method"] == "prompt" and self.row["theta"] == 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(pictures in a prompt, pictures to start from), which programs are compiled for."""
        pictures = max(sum(isinstance(one, Sight) for one in elements) for elements in self.elements)
        return pictures, len(self.starts[0]) if self.starts else 0


def runs(tasks: Sequence[BenchTask], methods: Methods) -> Iterator[Run]:
    """Every method that the tasks of a part allow; what reads pictures needs some, and so on."""
    shown = all(task.shown for task in tasks)
    words = all(task.words for task in tasks)
    count = len(tasks[0].shown)

    def wanted(name: str, possible: bool) -> bool:
        return name in methods.names and possible

    if wanted("prompt", True):
        # Weights and sites are of a picture beside words; elsewhere all weigh the same.
        curve = [(t, s) for s in methods.sites for t in methods.thetas if t != 1.0] if shown and words else []
        for theta, site in [(1.0, "any"), *curve]:
            yield Run({"method": "prompt", "theta": theta, "site": site}, [task.elements for task in tasks])
    for name, balance in BALANCED.items():
        if wanted(name, shown and (words or count > 1)):
            row = {"method": name, "site": "cross_attention"}
            yield Run(row, [task.elements for task in tasks], balance=balance)
    if wanted("text", words and shown):
        yield Run({"method": "text"}, [task.words for task in tasks])
    if wanted("told", shown):
        yield Run({"method": "told"}, [(task.told,) for task in tasks])
    if wanted("picture", shown and (words or count > 1)):
        yield Run({"method": "picture"}, [task.shown[:1] for task in tasks])
    starts = [task.shown for task in tasks]
    said: dict[str, list[Elements]] = {
        "img2img": [task.words for task in tasks],
        "img2img-told": [(task.told,) for task in tasks],
        "interpolation": [()] * len(tasks),
    }
    for name, elements in said.items():
        if wanted(name, shown and count == (2 if name == "interpolation" else 1)):
            for strength in methods.strengths:
                yield Run({"method": name, "strength": strength}, elements, starts)


def best(rows: Sequence[Mapping[str, Any]], method: str) -> Mapping[str, Any] | None:
    """The row of a method whose pictures are right most often, whatever theta, site or strength; the first of equals."""
    own = [row for row in rows if row["method"] == method]
    return max(own, key=right, default=None)


def right(row: Mapping[str, Any]) -> float:
    """How often a row's pictures are right: exactly, or of two pictures both subjects."""
    return float(row["exact_1"] if "exact_1" in row else row["both"])


def named(row: Mapping[str, Any]) -> str:
    """'prompt, theta 0.2, decoder'."""
    parts = [row["method"], *(f"{key} {row[key]:g}" for key in ("theta", "strength") if key in row)]
    return ", ".join(parts + ([row["site"]] if row.get("site", "any") != "any" else []))


class Painter:
    """Draws rows with a bundle, in as few programs as can be: one for each number of pictures in a prompt and to
    start from, whatever else differs."""

    def __init__(self, pipe: Pipeline, world: World, settings: Evaluation, asked: Sequence[Run]) -> None:
        """asked: all rows that are to be drawn."""
        self.pipe = pipe
        most = max((len(run.elements) for run in asked), default=1)
        self.settings = dataclasses.replace(settings, batch=min(settings.batch, most))
        self.size = image_size(pipe.model, settings.sampling.height, settings.sampling.width)
        self._render = renders(world)
        self._lengths = self._longest(asked)

    def _longest(self, asked: Sequence[Run]) -> dict[tuple[int, int], int]:
        """The positions that the longest prompt needs, by the shape of rows."""
        blank = Image(np.zeros((SIDE, SIDE, 3), np.uint8))
        # What differs in its pictures alone is as long.
        found: dict[tuple[int, int], set[tuple[str | None, ...]]] = {}
        for run in asked:
            texts = ([one if isinstance(one, str) else None for one in each] for each in run.elements)
            found.setdefault(run.shape, set()).update(map(tuple, texts))

        def length(part: Sequence[tuple[str | None, ...]]) -> int:
            prompts = [_prompt([blank if one is None else Text(one) for one in each]) for each in part]
            return int(self.pipe.bundle.to_batch(prompts).token_ids.shape[1])

        return {
            shape: max(length(each[at : at + 50]) for at in range(0, len(each), 50))
            for shape, each in ((shape, list(each)) for shape, each in found.items())
        }

    def prepare(self, run: Run) -> Prepared:
        """The host's part."""
        theta, site = run.row.get("theta", 1.0), run.row.get("site", "any")
        prompts = [
            _prompt(
                [
                    Text(one) if isinstance(one, str) else Image(self._render(one), weight=theta)
                    for one in elements
                ],
                None if site == "any" else site,
                run.balance,
            )
            for elements in run.elements
        ]
        settings, init = self.settings, None
        if run.starts:
            pixels = np.stack(
                [
                    np.stack([to_vae_pixels(self._render(one), *self.size) for one in sights])
                    for sights in run.starts
                ]
            )
            init = InitImages(pixels, np.full(pixels.shape[:2], 1 / pixels.shape[1], np.float32))
            sampling = settings.sampling.changed(strength=run.row["strength"])
            settings = dataclasses.replace(settings, sampling=sampling)
        return prepare(self.pipe, prompts, settings, init, length=self._lengths[run.shape])


def _prompt(
    elements: Sequence[Text | Image], site: str | None = None, balance: Balance = False
) -> Prompt | None:
    if not elements:
        return None
    return Prompt(tuple(elements), site=cast(Site, site or "both"), balance=balance)
