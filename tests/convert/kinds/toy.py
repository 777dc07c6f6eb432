"""A kind of checkpoint that no one has: an image prefix by names of its own. This file is all that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvader_jax.convert.engine import SourceMap, links_of
from mvader_jax.convert.export import Job
from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.kinds.base import Export, Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.layouts import LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, shape_of
from mvader_jax.convert.tensors import Weights
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig


class Toy(Kind):
    name = "toy"
    signs = ((r"toy\.proj\.weight", r"toy\.ln\.weight"),)

    def __init__(self) -> None:
        self.export = Export("toy", ("image_prefix",), write_toy)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        width, in_width = shape_of(weights.tensors, "toy.proj.weight", 2)
        settings.agree("width", width)
        settings.done({"colour": "a toy's colour changes nothing"})
        model = ModelConfig(image_prefix=ImagePrefixConfig(in_width=in_width, width=width))
        abstract = abstract_of(model, "image_prefix")
        return Source(self, (Part(weights, toy_map(abstract["image_prefix"])),), model, abstract)


def toy_map(prefix: Any) -> SourceMap:
    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.split("/")
        kind = "bias" if leaf == "bias" else "weight"
        return f"toy.{module}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    return SourceMap("the toy", links_of("image_prefix", prefix, rule))


def write_toy(job: Job, out: Path) -> list[str]:
    trees = job.trees()
    source_map = toy_map(trees["image_prefix"])
    file = out / "toy.safetensors"
    write_safetensors(file, job.described(source_map, trees), job.arrays(source_map, trees))
    return ["toys are for playing"]
