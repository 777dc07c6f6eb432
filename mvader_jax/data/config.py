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
    """The data of one stage.

    source: where records come from, with its own settings (data/sources/).
    image_size: side of the target pictures in pixels, of a model that draws none itself.
    crop: which square of the picture is kept; flip: probability of mirroring it (text in pictures
        becomes unreadable, hence 0).
    aspect_buckets: sides (height, width) that whole batches take, nearest to each picture's own shape;
        empty for square pictures only.
    precomputed: folders of latents and features written by `mvader data encode`, read in place of the
        source's pictures (and mixed by its `weights`).
    threads: that read and decode; workers: processes of so many threads, for hosts of many cores.
    bad_limit: distinct damaged records that a run skips before it stops; bad_share: the same as a share of the
        records of one data set, so that a small one of which most is damaged stops it too.
    """

    source: Source = dataclasses.field(default_factory=Scenes)
    image_size: PositiveInt = 64
    crop: Literal["centre", "random"] = "centre"
    flip: Share = 0.0
    aspect_buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    precomputed: tuple[str, ...] = ()
    seed: Seed = 0
    shuffle: bool = True
    threads: Annotated[int, between(1, 1024)] = 2
    workers: Workers = 0
    bad_limit: NonNegativeInt = 1000
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
