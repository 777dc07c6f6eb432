"""Public weights into a bundle: recognised, paired, checked, written one tensor at a time, all or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.engine import Matched, Paired, converted, match
from mvader_jax.convert.kinds.base import Options, Source
from mvader_jax.convert.mark import earlier_records, kept
from mvader_jax.convert.vocabulary import load_vocabulary
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle_config import not_ours, write_config
from mvader_jax.storage.reader import Leaf
from mvader_jax.storage.stream import write_component

DTYPES = ("keep", "float32", "bfloat16")
#: Called with (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did: {component: its record}, {reason: names left out}, names that hold NaN, notes."""

    components: dict[str, dict[str, Any]]
    skipped: dict[str, tuple[str, ...]]
    not_finite: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: Source,
    path: Path,
    out: Path,
    *,
    origin: str = "",
    options: Options | None = None,
    dtype: str = "keep",
    base: Path | None = None,
    tokenizer: Path | None = None,
    allow_nan: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes the bundle `out` from a source that `sources.open_source` understood.

    path: where the source is. origin: what the record calls it, its name where empty. dtype: of the
    weights in the bundle, one of DTYPES. base: what an SGPT finetune is a finetune of. tokenizer: a
    folder with a vocabulary, for sources without. allow_nan: take numbers that are not finite. Raises
    UserError where the source and its map do not fit in every tensor, and where `out` cannot be written.
    """
    _check_flags(source, dtype, base, tokenizer)
    matched = [
        match(part.source_map, part.weights.tensors, source.abstract, dtype=dtype) for part in source.parts
    ]
    written = sum(_nbytes(leaf) for m in matched for leaves in m.leaves.values() for leaf in leaves)
    compared = sum(t.nbytes for p in source.parts for t in p.weights.tensors.values()) if base else 0
    advance = counter(progress, written + compared)
    vocabulary, model, said = _tokenizer(source.model, tokenizer or source.tokenizer)
    notes = [*source.notes, *said]
    if base is not None:
        notes.append(source.kind.compare(source, base, options or Options(), advance))
    not_finite: list[str] = []
    records: dict[str, dict[str, Any]] = {}
    earlier = earlier_records(path)
    sources = [place for place in (path, base, tokenizer) if place is not None and place.exists()]
    with whole_directory(
        out, overwrite=overwrite, not_ours=not_ours, sources=sources, needed=written
    ) as work:
        for part, m in zip(source.parts, matched, strict=True):
            for component, leaves in m.leaves.items():
                known = len(not_finite)
                made = write_component(
                    work / component, [_leaf(leaf, allow_nan, not_finite.append) for leaf in leaves], advance
                )
                record = {
                    "kind": source.kind.name,
                    "source": origin or path.name,
                    "files": [f.name for f in part.weights.files],
                }
                if not_finite[known:]:
                    record["not_finite"] = list(dict.fromkeys(not_finite[known:]))
                records[component] = {**record, **made, **kept(earlier, component, made["sha256"])}
        if vocabulary is not None:
            (work / "tokenizer").mkdir()
            vocabulary.save(work / "tokenizer")
        write_config(work, model, records)
    return Report(records, _merged(source, matched), tuple(dict.fromkeys(not_finite)), tuple(notes))


def _check_flags(source: Source, dtype: str, base: Path | None, tokenizer: Path | None) -> None:
    """Raises UserError for a flag of no known value, that is missing, or that would do nothing."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; accepted: {', '.join(DTYPES)}")
    if base is not None and not source.kind.needs_base:
        raise UserError(
            f"--base belongs to finetunes of biases alone (sgpt-biases), and this is {source.kind.name}"
        )
    if base is None and source.kind.needs_base:
        raise UserError(
            "this is a finetune of GPT-J's biases; pass --base with the GPT-J it starts from (a folder or a bundle), "
            "so that everything else can be checked to be the same"
        )
    if tokenizer is not None and source.model.tokenizer is None:
        raise UserError(f"--tokenizer has no place here: {source.kind.name} holds nothing that reads a text")


def _nbytes(leaf: Paired) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize


def _leaf(paired: Paired, allow_nan: bool, report: Callable[[str], None]) -> Leaf:
    slices: Callable[[], Iterator[np.ndarray]] = partial(
        converted, paired, allow_nan=allow_nan, report=report
    )
    return Leaf(paired.path, paired.shape, paired.dtype, paired.stacked, slices)


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Adds up bytes and tells `progress` of them."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return advance


def _tokenizer(
    model: ModelConfig, folder: Path | None
) -> tuple[Tokenizer | None, ModelConfig, tuple[str, ...]]:
    """(the tokenizer of a folder, the model with its ids, notes). Raises UserError where the folder has none."""
    if folder is None or model.tokenizer is None:
        return None, model, ()
    reader = model.text_encoder or model.decoder
    rows = None if reader is None else reader.vocab_size
    tokenizer, notes = load_vocabulary(folder, model.tokenizer, rows)
    return tokenizer, dataclasses.replace(model, tokenizer=tokenizer.config), notes


def _merged(source: Source, matched: list[Matched]) -> dict[str, tuple[str, ...]]:
    merged: dict[str, tuple[str, ...]] = {}
    for part, m in zip(source.parts, matched, strict=True):
        for reason, names in m.skipped.items():
            merged[reason] = (*merged.get(reason, ()), *names)
        if part.weights.others:
            merged["no tensor"] = (*merged.get("no tensor", ()), *part.weights.others)
    return merged
