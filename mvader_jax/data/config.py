"""What a stage of training reads, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from mvader_jax.bounds import NonNegativeInt, PositiveInt, Seed, Share, Workers, between
from mvader_jax.data.sources import Scenes, Source
from mvader_jax.settings import Checked


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """What a stage reads, and how."""

    #: Where records come from, with its own settings.
    source: Source = dataclasses.field(default_factory=Scenes)
    #: Side of the target pictures in pixels, of a model that draws none itself; else it is the model's.
    image_size: PositiveInt = 64
    #: Which square of the picture is kept.
    crop: Literal["centre", "random"] = "centre"
    #: Probability of mirroring a picture (text in it becomes unreadable, hence 0).
    flip: Share = 0.0
    #: Sides (height, width) that whole batches take, nearest to each picture's own shape; empty for square pictures.
    aspect_buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    #: Folders of latents, features and states written by `mvader data encode`, read in place of the source's pictures (and
    #: mixed by its `weights`).
    precomputed: tuple[str, ...] = ()
    #: Of the order, of crops, and of what a source draws.
    seed: Seed = 0
    #: Another order in every epoch; else that of the data set.
    shuffle: bool = True
    #: Threads that read and decode.
    threads: Annotated[int, between(1, 1024)] = 2
    #: Processes of so many threads, for hosts of many cores; 0: threads of the process that trains.
    workers: Workers = 0
    #: Distinct damaged records that a run passes over before it stops.
    bad_limit: NonNegativeInt = 1000
    #: The same as a share of the records of one data set, so that a small one of which most is damaged stops it too.
    bad_share: Share = 0.5

    moved: ClassVar[Mapping[str, str]] = {
        **{
            name: f"source.{name}"
            for name in ("paths", "weights", "num_records", "languages", "omit", "parallel")
        },
        **{
            name: f"..objective.{name}"
            for name in (
                "caption_length",
                "p_image",
                "p_interleaved",
                "interleaved",
                "interleaved_images",
                "interleaved_length",
            )
        },
    }
