"""Grids of fixed prompts and fixed noise, drawn while a stage trains."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

from mvader_jax.data.decode import decode
from mvader_jax.data.order import Reader, Record
from mvader_jax.images.pixels import unit_to_uint8
from mvader_jax.images.read import load_image
from mvader_jax.images.sheet import grid
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_of
from mvader_jax.parallel.sharding import replicated
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.prompt.parse import parse_part
from mvader_jax.sampling.generate import Draws, Prompted
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.sizes import sized

if TYPE_CHECKING:
    # They hold the objectives, which say what is drawn.
    from mvader_jax.train.config import Stage
    from mvader_jax.train.run import Run

#: Held-out records a default grid shows: as captions, as images, and as an image with another's caption.
_CAPTIONS, _IMAGES, _BOTH = 4, 2, 2
#: Pictures that an autoencoder's grid shows, each over its reconstruction.
_RECONSTRUCTED = 8
Grid = tuple[np.ndarray, list[str]]


@runtime_checkable
class Drawing(Protocol):
    """Draws the grid of a stage with a pipeline of its model; one object draws all grids of a run."""

    #: Whether it draws `Stage.sample_prompts` where there are some.
    reads_prompts: ClassVar[bool]

    def __call__(self, pipeline: Pipeline, stage: Stage) -> Grid:
        """(uint8 [H, W, 3], what each picture shows). Raises UserError for prompts it cannot read."""
        ...


class SampleGrid:
    """Draws the grids of one run as its objective says: `SampleGrid()(run, bundle)`, in every process together."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._drawing: Drawing | None = None

    def __call__(self, run: Run, bundle: Bundle) -> Grid | None:
        """The grid, or None where the stage makes no pictures. Raises UserError for prompts it cannot read."""
        if self._pipeline is None or self._drawing is None:
            self._drawing = run.stage.objective.drawing()
            if self._drawing is None:
                return None
            self._pipeline = Pipeline(run.stage.objective.drawn(bundle), dtype=run.stage.dtype, mesh=run.mesh)
        # One pipeline for the whole run: its programs are compiled once.
        self._pipeline.bundle = run.stage.objective.drawn(bundle)
        return self._drawing(self._pipeline, run.stage)


def check_samples(stage: Stage, bundle: Bundle) -> None:
    """Raises UserError for what would end a run at its first grid, hours after it began."""
    drawing = stage.objective.drawing() if stage.sample_every else None
    if drawing is None or not drawing.reads_prompts:
        return
    model = stage.objective.drawn(bundle).model
    grid_settings(stage, model).static(model)
    for prompt, _ in chosen_prompts(stage):
        for one in prompt.elements:
            if isinstance(one, Image):
                load_image(one.image)


def grid_settings(stage: Stage, model: ModelConfig) -> SamplingSettings:
    """How the pictures of a stage's grids are drawn."""
    chosen = SamplingSettings.of(model)
    return chosen.changed(steps=stage.sample_steps, guidance_scale=stage.sample_guidance)


class Pictures:
    """One picture a prompt of `Stage.sample_prompts`, or of held-out records."""

    reads_prompts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._prompts: list[tuple[Prompt, str]] = []

    def __call__(self, pipeline: Pipeline, stage: Stage) -> Grid:
        bundle = pipeline.bundle
        if not self._prompts:
            self._prompts = chosen_prompts(stage) or held_out_prompts(bundle, stage)
        count = len(self._prompts)
        settings = grid_settings(stage, bundle.model)
        draws = Draws.of(
            settings,
            Prompted(bundle.to_batch([prompt for prompt, _ in self._prompts])),
            Prompted(bundle.to_batch([None])),
            np.arange(count),
        )
        drawn = pipeline.generate(draws, settings.static(bundle.model))
        pictures, finite = (on_host(pipeline, array) for array in drawn)
        named = [label for _, label in self._prompts]
        labels = [
            label if good else f"(NaN or infinity) {label}" for label, good in zip(named, finite, strict=True)
        ]
        return np.asarray(grid(list(pictures), columns=4, labels=labels)), labels


class Reconstructions:
    """Held-out pictures and, below, what the autoencoder makes of them."""

    reads_prompts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._pixels: np.ndarray | None = None

    def __call__(self, pipeline: Pipeline, stage: Stage) -> Grid:
        if self._pixels is None:
            records = itertools.islice(held_out(stage, pipeline.bundle.model), _RECONSTRUCTED)
            self._pixels = np.stack([record["image"] for record in records])
        latents = pipeline.encode(self._pixels)
        made = on_host(pipeline, pipeline.decode(latents))
        made = unit_to_uint8(made)
        labels = ["held out"] * len(made) + ["reconstructed"] * len(made)
        return np.asarray(grid([*self._pixels, *made], columns=len(made))), labels


def chosen_prompts(stage: Stage) -> list[tuple[Prompt, str]]:
    """The stage's own prompts; the parts of one are separated by ' | ', as in 'in red | photo.png@0.3'."""
    texts = stage.sample_prompts
    return [(Prompt(tuple(parse_part(part) for part in text.split(" | "))), text) for text in texts]


def held_out_prompts(bundle: Bundle, stage: Stage) -> list[tuple[Prompt, str]]:
    """Prompts of the validation split: captions, and where the model takes images, images and both."""
    images = embedder_of(bundle.model).image_encoder is not None
    wanted = _CAPTIONS + (_IMAGES + _BOTH) * images
    records = list(itertools.islice(held_out(stage, bundle.model), wanted + 1))
    found = [(Prompt((Text(record["caption"]),)), record["caption"]) for record in records[:_CAPTIONS]]
    for number, record in enumerate(records[_CAPTIONS:wanted], _CAPTIONS):
        picture = Image(record["image"])
        if number < _CAPTIONS + _IMAGES:
            found.append((Prompt((picture,)), f"[picture: {record['caption']}]"))
        else:
            text = records[number + 1]["caption"]
            found.append((Prompt((Text(text), picture)), f"{text} [picture: {record['caption']}]"))
    return found


def held_out(stage: Stage, model: ModelConfig) -> Iterator[Record]:
    """The stage's validation records in order, decoded as its model draws them, those without a caption left out."""
    config = dataclasses.replace(sized(stage.data, model), shuffle=False, precomputed=())
    reader = Reader(stage.objective.sources(config, "validation"), (), config.seed, shuffle=False)
    for position in range(len(reader)):
        finish = functools.partial(
            decode, config=config, rng=reader.rng(position, "decode"), size=(config.image_size,) * 2
        )
        record, _ = reader.read(position, finish)
        if str(record.get("caption", "")).strip():
            yield record


def on_host(pipeline: Pipeline, array: Any) -> np.ndarray:
    """An array of any sharding, whole, in every process."""
    mesh = pipeline.placement.mesh
    whole = None if mesh is None else replicated(mesh)
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(array))
