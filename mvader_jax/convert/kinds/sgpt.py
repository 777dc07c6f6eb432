"""SGPT's BitFit finetunes of GPT-J (Muennighoff/sgpt): whole models, of which only the biases may differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.engine import Skip, SourceMap, links_of
from mvader_jax.convert.kinds import gptj
from mvader_jax.convert.kinds.base import (
    Kind,
    Options,
    Part,
    Source,
    abstract_of,
    open_weights,
    settings_of,
)
from mvader_jax.convert.settings import Settings, spelled
from mvader_jax.convert.tensors import Weights
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.storage.bundle_config import find_bundle, read_model
from mvader_jax.storage.reader import ComponentReader

Read = Callable[[str], np.ndarray | None]


class SgptBiases(Kind):
    """The biases alone; a bare GPTJModel, so it has no head."""

    name = "sgpt-biases"
    signs = ((r"(transformer\.)?h\.0\.attn\.q_proj\.",),)
    needs_base = True

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        decoder = gptj.GptJ().read(weights, settings, options).model.decoder
        model = ModelConfig(decoder=decoder)
        abstract = abstract_of(model, "biases")
        return Source(self, (Part(weights, sgpt_map(abstract["biases"])),), model, abstract)

    def compare(self, source: Source, base: Path, options: Options, advance: Callable[[int], None]) -> str:
        count = _compared(source, base, options, advance)
        return f"all {count} tensors that are no biases equal those of {base}"


def sgpt_map(biases: Any) -> SourceMap:
    """The biases alone; every other tensor is left out, to be compared with the base's.

    biases: the tree of our `biases` component.
    """
    links = links_of("biases", biases, gptj.gptj_rule)
    others = Skip(r"(.*\.weight|lm_head\.bias)", "not among the biases: compared with the base's")
    return SourceMap("an SGPT bias finetune of GPT-J", links, (*gptj.SKIPS, others), spellings=gptj.SPELLINGS)


def _compared(source: Source, base: Path, options: Options, advance: Callable[[int], None]) -> int:
    """Compares every tensor of a finetune that is no bias with its base's; returns how many there are.

    base: a GPT-J folder, or a bundle with a decoder. Numbers of two widths are compared at the
    narrower. Raises UserError saying how many differ.
    """
    (part,) = source.parts
    taken = {link.name for link in part.source_map.links}
    buffers = [skip.pattern for skip in gptj.SKIPS]
    tensors = spelled(part.weights.tensors, gptj.SPELLINGS)
    compared = [
        name
        for name in tensors
        if name not in taken and not any(re.fullmatch(pattern, name) for pattern in buffers)
    ]
    read = _reader(base, options)
    different = []
    for name in compared:
        mine, theirs = tensors[name].read(), read(name)
        if theirs is None or not _same(mine, theirs):
            different.append(name)
        advance(tensors[name].nbytes)
    if different:
        raise UserError(
            f"{len(different)} of {len(compared)} tensors that are no biases differ from those of {base}, so this is "
            f"no bias finetune of it: {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}"
        )
    return len(compared)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    narrow = min((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(a.astype(narrow, copy=False), b.astype(narrow, copy=False)))


def _reader(base: Path, options: Options) -> Read:
    if not (base / "decoder").is_dir():
        if not base.exists():
            raise UserError(f"--base {base} does not exist")
        own = Options(variant=options.variant if base.is_dir() else None, trust_pickle=options.trust_pickle)
        opened = gptj.GptJ().read(open_weights(base, own), settings_of(base, own), own)
        tensors = spelled(opened.parts[0].weights.tensors, gptj.SPELLINGS)
        return lambda name: tensors[name].read() if name in tensors else None
    path = find_bundle(base)
    model, _ = read_model(path)
    decoder = ComponentReader(path / "decoder")
    abstract, _ = abstract_components(model, ["decoder"])
    links = {link.name: link for link in gptj.gptj_map(abstract["decoder"]).links}

    def read(name: str) -> np.ndarray | None:
        link = links.get(name)
        return None if link is None else link.layout.external([decoder.read(link.path, link.layer)])

    return read
