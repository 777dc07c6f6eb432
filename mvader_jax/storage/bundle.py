"""A bundle: a directory with `config.json`, one checkpoint a component, and the tokenizer's file.

A bundle may lack components; whoever needs a missing one says so. `config.json` records the model's
architecture and, for every component, where it came from, its parameters, dtypes and hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from mvader_jax.condition import PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_of, find_embedder
from mvader_jax.models.quantised import INTEGERS, SCALE, quantised, with_scales
from mvader_jax.models.unet import factors_shape
from mvader_jax.parallel.processes import first_process
from mvader_jax.parallel.sharding import Tree, param_shardings
from mvader_jax.prompt.elements import PromptLike
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle_config import (
    find_bundle,
    hashes,
    not_ours,
    read_config,
    read_model,
    write_config,
    write_json,
)
from mvader_jax.storage.reader import ComponentReader, read_tree

#: Components up to this size are compared with their SHA-256 whenever they are read whole (0.1 s).
_ALWAYS_VERIFIED_BYTES = 64 << 20


@dataclasses.dataclass(repr=False)
class Bundle:
    """model: architecture; components: {name: parameters}; records: {name: what config.json says of it}."""

    model: ModelConfig
    components: dict[str, Tree]
    tokenizer: Tokenizer | None = None
    records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        held = (f"{name} {parameter_count(tree):,}" for name, tree in sorted(self.components.items()))
        tokenizer = "" if self.tokenizer is None else ", a tokenizer"
        return f"Bundle({self.model.embedder}; parameters: {', '.join(held) or 'none'}{tokenizer})"

    @property
    def changed(self) -> bool:
        """Whether the UNet has a LoRA in its weights."""
        return "lora" in self.records.get("unet", {})

    def fast(self) -> Bundle:
        """The bundle with its few-step UNet, `unet_fast`, in the place of the one that it learnt from; no parameters
        are copied. Raises UserError where it has none."""
        model = self.model.fast
        self.need("unet_fast")
        rest = [name for name in self.components if name not in ("unet", "unet_fast")]
        components = {name: self.components[name] for name in rest} | {"unet": self.components["unet_fast"]}
        records = {name: self.records[name] for name in rest if name in self.records}
        if "unet_fast" in self.records:
            records["unet"] = self.records["unet_fast"]
        return dataclasses.replace(self, model=model, components=components, records=records)

    def need(self, *names: str) -> None:
        """Raises UserError naming the components that are missing."""
        missing = [name for name in names if name not in self.components]
        if missing:
            raise UserError(
                f"this bundle has no {' and no '.join(missing)}; it holds {', '.join(sorted(self.components)) or 'nothing'}"
            )

    def to_batch(self, prompts: Sequence[PromptLike | None], **options: Any) -> PromptBatch:
        """A list of prompts laid out for this bundle's embedder; options and errors as `layout.lay_out`."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise UserError(f"prompts is {prompts!r:.80}; expected a list of prompts")
        if self.tokenizer is None:
            raise UserError("this bundle has no tokenizer, so it cannot read a prompt")
        embedder = embedder_of(self.model)
        known: dict[str, Any] = {
            "decoder_heads": embedder.heads,
            "max_positions": embedder.max_positions,
            "vocabulary": embedder.vocab_size,
            "chunks": embedder.chunks,
        }
        if embedder.image_encoder is not None:
            encoder = embedder.image_encoder
            known |= {"image_size": encoder.image_size, "image_tokens": encoder.num_tokens}
        if self.model.unet is not None:
            known["cross_attention_heads"] = factors_shape(self.model.unet)
        return lay_out(self.tokenizer, prompts, **{**known, **options})


def load_bundle(
    name: str | Path,
    *,
    components: Collection[str] | None = None,
    mesh: Mesh | None = None,
    dtype: str | jnp.dtype | None = None,
    fast: bool | None = None,
    integers: str | None = None,
) -> Bundle:
    """Reads a bundle, or those of its `components` that are named. fast: which of two UNets is read alone; with True
    the few-step one, as `Bundle.fast` has it.

    On a mesh every device reads only its own shards, by the table in `parallel/sharding.py`;
    without one the parameters come to the default device. dtype: what floating parameters are cast
    to; None keeps them as stored. integers: "int8" or "int4", what the matrices of the decoder become, one after the
    other (`models/quantised.py`). Raises UserError for an unknown bundle, a component it lacks, or no such matrices.
    """
    path = find_bundle(name)
    model, records = read_model(path)
    expected = hashes(path)
    places = {component: component for component in records}
    if fast is not None:
        quick = places.pop("unet_fast", None)
        if fast:
            model, places["unet"] = model.fast, quick or "unet_fast"
    records = {component: records[place] for component, place in places.items() if place in records}
    wanted = list(records) if components is None else list(components)
    missing = [c for c in wanted if c not in records]
    if missing:
        raise UserError(
            f"bundle {str(name)!r} has no {' and no '.join(missing)}; it holds {', '.join(sorted(records))}"
        )
    abstract, axes = abstract_components(model, wanted)
    for stored in INTEGERS.keys() & set(records.get("decoder", {}).get("dtypes", ())):
        abstract = quantised(abstract, stored) if "decoder" in abstract else abstract
    axes = with_scales(axes, abstract)
    if integers is not None:
        quantised(abstract, integers)  # refuses before anything is read
    trees = {}
    for component in wanted:
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if dtype is None else jnp.dtype(dtype)),
            abstract[component],
        )
        shardings = None if mesh is None else param_shardings(target, axes[component], mesh)
        place = path / places[component]
        tree = read_tree(place, target, dtype) if shardings is None else None
        if tree is None:  # onto a mesh, or something is wrong: orbax knows what
            from mvader_jax.storage.checkpoint import restore_tree

            tree = restore_tree(place, abstract=target, shardings=shardings, dtype=dtype)
        if records[component].get("dtypes") == sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}):
            _compare(place, tree, expected.get(places[component]))
        if integers is not None and component == "decoder":
            tree = quantised({component: tree}, integers)[component]
        # device_put, not jnp.asarray: that compiles a program for every shape.
        trees[component] = tree if mesh is not None else jax.device_put(tree)
    tokenizer = None
    if model.tokenizer is not None and (path / "tokenizer").is_dir():
        tokenizer = Tokenizer.load(path / "tokenizer", model.tokenizer)
        check_tokenizer(tokenizer, model, f"bundle {str(name)!r}")
    return Bundle(model, trees, tokenizer, {c: records[c] for c in wanted})


def check_tokenizer(tokenizer: Tokenizer, model: ModelConfig, what: str) -> None:
    """Raises UserError, naming `what`, where a tokenizer has more tokens than the model's embedding has rows.

    Tokens that were added beside the vocabulary (GPT-J's 143 extra ones) may lie beyond: a prompt that holds one
    is refused when it is laid out.
    """
    embedder, own = find_embedder(model), tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if embedder is not None and max(own, tokenizer.config.eos_id + 1) > embedder.vocab_size:
        raise UserError(
            f"the tokenizer of {what} has {own} tokens, but the model's embedding has {embedder.vocab_size} rows: "
            "it belongs to another model"
        )


def _compare(path: Path, tree: Tree, expected: str | None) -> None:
    """Raises UserError where a small component, read as it was stored, is not the one that was written."""
    if expected is not None and sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) <= _ALWAYS_VERIFIED_BYTES:
        _check_hash(path, summary(tree).get("sha256", expected), expected)


def _check_hash(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(f"{path} is damaged: its numbers are not those that were written (SHA-256)")


def verify(path: Path, components: Collection[str] | None = None) -> dict[str, bool]:
    """Reads a bundle's components whole, a slice at a time, and compares them with their SHA-256.

    Returns {component: whether it has one to compare with}. Raises UserError for one that is damaged. Takes
    about as long as reading the files does (3 to 5 s a gigabyte on a busy core).
    """
    names, expected = read_config(path)["components"], hashes(path)
    for name in names if components is None else components:
        found = ComponentReader(path / name).sha256()
        _check_hash(path / name, found, expected.get(name, found))
    return {name: name in expected for name in names}


def check_whole(path: Path, component: str) -> None:
    """Raises UserError where a component is damaged, as far as that is told soon.

    A large one that a conversion wrote (plain files of known sizes) is not read: no file is missing or cut.
    """
    reader = ComponentReader(path / component)
    if not (reader.plain and reader.nbytes > _ALWAYS_VERIFIED_BYTES):
        verify(path, [component])
    reader.check_files()


def save_bundle(path: str | Path, bundle: Bundle, *, overwrite: bool = False) -> None:
    """Writes a bundle atomically. Raises UserError when `path` exists and `overwrite` is not set."""
    with whole_directory(path, overwrite=overwrite, not_ours=not_ours) as work:
        write_bundle(work, bundle)


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Writes a bundle's files into a directory that exists (see `save_bundle` for the whole way).

    The processes of a job call it together, each writing its shards.
    """
    from mvader_jax.storage.checkpoint import save_tree  # orbax is imported by who writes

    records = {}
    for name, tree in bundle.components.items():
        save_tree(path / name, tree)
        # Not the hash of what the component was before it was trained: several processes make none.
        origin = {key: value for key, value in bundle.records.get(name, {}).items() if key != "sha256"}
        records[name] = {**origin, **summary(tree)}
    if first_process():
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(path / "tokenizer")
        write_config(path, bundle.model, records)


def parameter_count(tree: Tree) -> int:
    """The numbers of a component; integers are as many as the numbers that they stand for."""
    return sum(int(leaf.size) for path, leaf in flatten_dict(tree).items() if path[-1] != SCALE)


def summary(tree: Tree) -> dict[str, Any]:
    """Parameters, dtypes and (where this process holds them whole) the SHA-256 of a component."""
    flat = flatten_dict(tree, sep="/")
    dtypes = sorted({str(leaf.dtype) for leaf in flat.values()})
    record: dict[str, Any] = {"parameters": parameter_count(tree), "dtypes": dtypes}
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in flat.values()):
        digest = hashlib.sha256()
        for path, leaf in sorted(flat.items()):
            digest.update(f"{path}:{leaf.dtype}:{leaf.shape}".encode())
            digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        record["sha256"] = digest.hexdigest()
    return record


def carry_over(path: Path, sources: Mapping[str, Path]) -> None:
    """Adds components of other bundles to the bundle being written at `path`, linked or copied, unread.

    sources: {component: its directory}. Their architecture must be in the written config already. Of the
    processes of a job, the first does it.
    """
    if not first_process():
        return
    data = read_config(path)
    for component, source in sources.items():
        link_component(source, path / component)
        data["components"][component] = read_config(source.parent)["components"][component]
    write_json(path, data)


def link_component(source: Path, target: Path, advance: Callable[[int], None] = lambda nbytes: None) -> None:
    """Makes `target` hold the component at `source` without taking its room on the disk again.

    Every file gets a second name (a hard link): nothing here changes a component's file once it is written, and each
    name is removed by itself. Where links cannot be made, as between two disks, files are copied. advance: called with
    the bytes of each file.
    """
    for file in component_files(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        whole = file.resolve()  # the hub's cache holds symlinks
        try:
            os.link(whole, place)
        except OSError:
            shutil.copyfile(whole, place)
        advance(whole.stat().st_size)


def component_files(directory: Path) -> list[Path]:
    """All files of a component."""
    return sorted(file for file in directory.rglob("*") if file.is_file())


def same_disk(source: Path, target: Path) -> bool:
    """Whether a file of `source` can have a second name at `target`, which need not be there yet."""
    above = next(path for path in target.absolute().parents if path.exists())
    return source.stat().st_dev == above.stat().st_dev
