"""What a stage of training reads, and how."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from mvader_jax.bounds import NonNegativeInt, PositiveFloat, PositiveInt, Seed, Share, Workers, between
from mvader_jax.settings import Checked

#: Where records come from: the synthetic world drawn as it is read, data sets built by `mvader data
#: build`, or JSONL of query, positive and negatives.
SourceName = Literal["scenes", "records", "pairs"]


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """The data of one stage.

    source: scenes need no path; records take directories, pairs take JSONL files.
    paths: local or gs://; several are mixed by `weights` (default: by their number of records).
    num_records: scenes in an epoch.
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
    omit: for scenes, the probability that a caption leaves an attribute out; languages: of its captions;
        parallel: the probability that a second caption of the same scene follows, as in parallel corpora.
    precomputed: folders of latents and features written by `mvader data encode`, read in place of `paths`
        (mixed by `weights` as they are) or of drawing scenes.
    threads: that read and decode; workers: processes of so many threads, for hosts of many cores.
    bad_limit: distinct damaged records that a run skips before it stops.
    """

    source: SourceName = "scenes"
    paths: tuple[str, ...] = ()
    weights: tuple[PositiveFloat, ...] = ()
    num_records: PositiveInt = 100_000
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
    languages: tuple[Literal["en", "de"], ...] = ("en", "de")
    omit: Share = 0.0
    parallel: Share = 0.0
    precomputed: tuple[str, ...] = ()
    seed: Seed = 0
    shuffle: bool = True
    threads: Annotated[int, between(1, 1024)] = 2
    workers: Workers = 0
    bad_limit: NonNegativeInt = 1000
