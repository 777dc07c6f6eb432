"""Where records come from: the synthetic scenes, built data sets, JSONL of pairs or interleaved prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Source
from mvader_jax.data.scenes.prompts import SceneInterleaved
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import Encoded
from mvader_jax.data.sources.jsonl import Interleaved, Pairs
from mvader_jax.data.sources.scenes import SceneImages, ScenePairs
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError


def open_sources(config: DataConfig, objective: str, split: Split) -> Sequence[Source]:
    """The sources of a config. Raises UserError where they do not exist or do not suit the objective."""
    if config.precomputed:
        if objective not in ("captioning", "diffusion"):
            raise UserError(f"the {objective} objective reads no precomputed latents or features")
        return [Encoded(path, split, config) for path in config.precomputed]
    if config.source == "pairs":
        if objective != "contrastive":
            raise UserError(f"the {objective} objective needs pictures; data of source 'pairs' has none")
        return [Pairs([path]) for path in config.paths]
    if config.source == "scenes":
        return [ScenePairs(config, split) if objective == "contrastive" else SceneImages(config, split)]
    if config.source == "records":
        if objective == "contrastive":
            raise UserError("the contrastive objective needs pairs; data of source 'records' has none")
        if not config.paths:
            raise UserError("data of source 'records' needs paths: folders that `mvader data build` wrote")
        return [Stored(path, split) for path in config.paths]
    raise UserError(f"data source {config.source!r} is unknown; accepted: scenes, records, pairs")


def picture_shapes(source: Source) -> np.ndarray:
    """int [N, 2]: height and width of every picture of a source, as stored."""
    if not isinstance(source, Stored):
        return np.ones((len(source), 2), np.int32)
    columns = source.columns()
    return np.stack([columns["height"], columns["width"]], axis=1)


def interleaved_source(config: DataConfig, split: Split) -> Sequence[Source]:
    """The interleaved prompts of a config: its JSONL files, or those made of scenes where there are none."""
    if config.interleaved:
        return [Interleaved(config.interleaved)]
    if config.source == "scenes":
        return [SceneInterleaved(config, split)]
    raise UserError("p_interleaved is set, but the data names no interleaved JSONL file")
