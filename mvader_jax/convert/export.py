"""A bundle's weights back to the PyTorch world, one tensor at a time, by the same maps as `convert`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.convert import Progress, counter
from mvader_jax.convert.engine import SourceMap, external, manifest
from mvader_jax.convert.kinds import KINDS
from mvader_jax.convert.kinds.base import Export
from mvader_jax.convert.mark import not_an_export, write_mark
from mvader_jax.convert.tensors import DTYPES, cast
from mvader_jax.errors import UserError
from mvader_jax.models.quantised import SCALE
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle import verify
from mvader_jax.storage.bundle_config import find_bundle, read_model
from mvader_jax.storage.reader import ComponentReader

EXPORT_DTYPES = {"keep": None, "float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}
Described = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: components, and notes on those that were not."""

    components: tuple[str, ...]
    notes: tuple[str, ...]


def formats() -> dict[str, Export]:
    """What `--to` accepts: every kind that can be written."""
    return {kind.export.name: kind.export for kind in KINDS if kind.export is not None}


def export(
    bundle: str | Path,
    out: Path,
    to: str,
    *,
    dtype: str = "keep",
    fast: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a bundle's components into the directory `out`, as their hashes say they are.

    to: one of `formats`: "diffusers" (a pipeline's folder), "compvis" (model.safetensors) or "magma"
    (mp_rank_00_model_states.pt, with the semantic biases laid over the language model's); the last two get
    a config.json with what their shapes do not tell. dtype: one of EXPORT_DTYPES. fast: the UNet that was
    distilled to few steps in place of the one that it learnt from. Raises UserError where
    the bundle has nothing of that format, an architecture that it cannot hold, or numbers that the dtype
    cannot.
    """
    if to not in formats():
        raise UserError(f"unknown format {to!r}; accepted: {', '.join(formats())}")
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; accepted: {', '.join(EXPORT_DTYPES)}")
    form = formats()[to]
    job = Job(find_bundle(bundle), EXPORT_DTYPES[dtype], fast)
    names = job.open(form.holds)
    if not names:
        raise UserError(
            f"{bundle} has nothing that {to} holds ({', '.join(form.holds)}); it has {', '.join(job.held)}"
        )
    for name, reader in job.readers.items():
        if any(path.endswith(f"/{SCALE}") for path in reader.paths):
            raise UserError(
                f"the {name} of {bundle} is stored as integers, for which {to} has no place; export the bundle it was made of"
            )
    verify(job.path, [job.places[name] for name in names])
    taken = {job.places[name] for name in names}
    left = [name for name in job.held if name not in taken and not (fast and name == "unet")]
    if not form.tokenizer and (job.path / "tokenizer").is_dir():
        left.append("tokenizer")
    total = sum(job.nbytes(name) for name in names)
    job.advance = counter(progress, total)
    with whole_directory(
        out,
        overwrite=overwrite,
        not_ours=not_an_export,
        sources=[job.path],
        needed=total * form.copies,
    ) as work:
        notes = [
            f"left out, {to} has no place for it: {name}" + "; --fast takes it" * (name == "unet_fast")
            for name in left
        ]
        notes += form.write(job, work)
        write_mark(work, job.path, names)
    return Exported(tuple(names), tuple(notes))


class Job:
    """A bundle being exported."""

    def __init__(self, path: Path, dtype: np.dtype | None, fast: bool = False) -> None:
        """places: {component: the directory it is read from}."""
        self.path, self.dtype = path, dtype
        self.model, records = read_model(path)
        self.held = sorted(records)
        self.places = {name: name for name in self.held}
        if fast:
            self.model = self.model.fast
            self.places["unet"] = self.places.pop("unet_fast", "unet_fast")
        self.readers: dict[str, ComponentReader] = {}
        self.advance: Callable[[int], None] = lambda _: None

    def open(self, names: tuple[str, ...]) -> list[str]:
        self.readers = {
            name: ComponentReader(self.path / self.places[name]) for name in names if name in self.places
        }
        return list(self.readers)

    def tree(self, name: str) -> Any:
        return self.readers[name].tree()

    def trees(self) -> dict[str, Any]:
        return {name: reader.tree() for name, reader in self.readers.items() if name != "biases"}

    def written(self, component: str, path: str) -> np.dtype:
        return self.dtype or self.readers[component].dtype(path)

    def nbytes(self, name: str) -> int:
        reader = self.readers[name]
        return sum(
            int(np.prod(reader.shape(path), dtype=np.int64)) * self.written(name, path).itemsize
            for path in reader.paths
        )

    def described(self, source_map: SourceMap, trees: Mapping[str, Any]) -> Described:
        """{name: (shape, dtype)} of what will be written, in order."""
        dtypes = {link.name: self.written(link.component, link.path) for link in source_map.links}
        return {name: (shape, dtypes[name]) for name, shape in manifest(source_map, trees).items()}

    def arrays(self, source_map: SourceMap, trees: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors in the same order."""
        biases = self.readers.get("biases")
        laid_over = set(biases.paths) if biases is not None else set()

        def read(component: str, path: str, layer: int | None) -> np.ndarray:
            over = biases if component == "decoder" and path in laid_over else None
            array = (over or self.readers[component]).read(path, layer)
            return cast(array, self.written(component, path), f"{component} {path}")

        for name, array in external(source_map, trees, read):
            yield name, array
            self.advance(array.nbytes)

    @staticmethod
    def write_json(file: Path, value: Mapping[str, Any]) -> None:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
