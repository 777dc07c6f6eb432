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
    image_size: side of the target pictures in pixels.
    caption_length: tokens of a caption row; longer captions are cut.
    p_image: share of samples conditioned on their own image, exact over the run (paper section 3: 0.2).
    p_interleaved: share conditioned on a prompt of several elements, see `interleaved`.
    interleaved: JSONL files of prompts and targets; none makes them of scenes.
    interleaved_images, interleaved_length: images and tokens that every such prompt is padded to, longer
        ones being left out; a length of 0 is that of so many images and a caption.
    crop: which square of the picture is kept; flip: probability of mirroring it (text in pictures
        becomes unreadable, hence 0).
    aspect_buckets: sides (height, width) that whole batches take, nearest to each picture's own shape;
        empty for square pictures only.
    precomputed: folders of latents and features written by `mvader data encode`, read in place of the
        source's pictures (and mixed by its `weights`).
    threads: that read and decode; workers: processes of so many threads, for hosts of many cores.
    bad_limit: distinct damaged records that a run skips before it stops.
    """

    source: Source = dataclasses.field(default_factory=Scenes)
    image_size: PositiveInt = 64
    caption_length: PositiveInt = 77
    p_image: Share = 0.2
    p_interleaved: Share = 0.0
    interleaved: tuple[str, ...] = ()
    interleaved_images: PositiveInt = 2
    interleaved_length: NonNegativeInt = 0
    crop: Literal["centre", "random"] = "centre"
    flip: Share = 0.0
    aspect_buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    precomputed: tuple[str, ...] = ()
    seed: Seed = 0
    shuffle: bool = True
    threads: Annotated[int, between(1, 1024)] = 2
    workers: Workers = 0
    bad_limit: NonNegativeInt = 1000

    moved: ClassVar[Mapping[str, str]] = {
        name: f"source.{name}"
        for name in ("paths", "weights", "num_records", "languages", "omit", "parallel")
    }
