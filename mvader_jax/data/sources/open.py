"""The data sets that a config names, opened: records to train on, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Dataset
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import Encoded
from mvader_jax.data.sources.jsonl import Interleaved
from mvader_jax.errors import UserError


def open_pictures(config: DataConfig, split: Split) -> Sequence[Dataset]:
    """Data sets of {"image", "caption"}, or of what was precomputed of them.

    Raises UserError where they do not exist, or cannot do what the config asks of them.
    """
    if config.source.drawn and config.crop == "random":
        raise UserError(
            f"data of source {config.source.kind!r} is drawn at image_size: crop='random' changes nothing; leave it out"
        )
    if config.precomputed:
        return [Encoded(path, split, config) for path in config.precomputed]
    return config.source.pictures(split, config.seed, config.image_size)


def open_pairs(config: DataConfig, split: Split, pictures: bool = False) -> Sequence[Dataset]:
    """Data sets of {"query", "positive", "negative"}, with `pictures` also of "image".

    Raises UserError as `open_pictures`.
    """
    if not pictures and (config.flip or config.crop == "random"):
        raise UserError(
            "flip and crop='random' are of pictures, and pairs of texts have none; leave them out"
        )
    return config.source.pairs(split, config.seed, config.image_size, pictures)


def open_interleaved(config: DataConfig, files: Sequence[str], split: Split) -> Sequence[Dataset]:
    """Interleaved prompts: those of JSONL files, or the source's own where none is named.

    Raises UserError as `open_pictures`.
    """
    if files:
        return [Interleaved(files, split)]
    return config.source.interleaved(split, config.seed, config.image_size)


def open_texts(config: DataConfig) -> Sequence[Dataset]:
    """Training records that hold "caption", or "query" and "positive"."""
    if config.precomputed:
        return open_pictures(config, "train")
    return config.source.texts("train", config.seed, config.image_size)
