"""SGPT's bias finetunes are whole models: everything but the biases must be the base's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mvader_jax.convert.kinds import gptj as gptj_keys
from mvader_jax.convert.settings import spelled
from mvader_jax.convert.sources import Options, Source, open_source
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.settings import from_dict
from mvader_jax.storage.bundle import find_bundle, read_config
from mvader_jax.storage.stream import ComponentReader

Read = Callable[[str], np.ndarray | None]


def check_base(source: Source, base: Path, options: Options, advance: Callable[[int], None]) -> int:
    """Compares every tensor of a finetune that is no bias with its base's; returns how many there are.

    base: a GPT-J folder, or a bundle with a decoder. Numbers of two widths are compared at the
    narrower. Raises UserError saying how many differ.
    """
    (part,) = source.parts
    taken = {link.name for link in part.source_map.links}
    buffers = [skip.pattern for skip in gptj_keys.SKIPS]
    tensors = spelled(part.weights.tensors, gptj_keys.SPELLINGS)
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
        opened = open_source(
            base, "gptj", Options(variant=options.variant, trust_pickle=options.trust_pickle)
        )
        tensors = spelled(opened.parts[0].weights.tensors, gptj_keys.SPELLINGS)
        return lambda name: tensors[name].read() if name in tensors else None
    path = find_bundle(base)
    model = from_dict(ModelConfig, read_config(path).get("model", {}), f"{path}/config.json: model")
    decoder = ComponentReader(path / "decoder")
    abstract, _ = abstract_components(model, ["decoder"])
    links = {link.name: link for link in gptj_keys.gptj_map(abstract["decoder"]).links}

    def read(name: str) -> np.ndarray | None:
        link = links.get(name)
        return None if link is None else link.layout.external([decoder.read(link.path, link.layer)])

    return read
