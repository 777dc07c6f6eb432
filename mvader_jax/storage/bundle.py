"""A bundle: a directory with `config.json`, one checkpoint a component, and the tokenizer's file.

A bundle may lack components; whoever needs a missing one says so. `config.json` records the model's
architecture and, for every component, where it came from, its parameters, dtypes and hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from mvader_jax.models.components import COMPONENTS, abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import factors_shape
from mvader_jax.parallel.processes import first_process
from mvader_jax.parallel.sharding import param_shardings
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.settings import from_dict, to_dict
from mvader_jax.storage import checkpoint, hub
from mvader_jax.storage.atomic import local, whole_directory

Tree = Any
FORMAT = 1
ASSETS = Path(__file__).parents[1] / "assets"


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

    def need(self, *names: str) -> None:
        """Raises UserError naming the components that are missing."""
        missing = [name for name in names if name not in self.components]
        if missing:
            raise UserError(
                f"this bundle has no {' and no '.join(missing)}; it holds {', '.join(sorted(self.components)) or 'nothing'}"
            )

    def to_batch(self, prompts: Sequence[Any], **options: Any) -> PromptBatch:
        """Prompts laid out for this bundle's embedder; options and errors as `layout.lay_out`."""
        if self.tokenizer is None:
            raise UserError("this bundle has no tokenizer, so it cannot read a prompt")
        encoder, decoder = self.model.image_encoder, self.model.decoder
        if self.model.embedder == "s_magma" and encoder is not None:
            options = {"image_size": encoder.image_size, "image_tokens": encoder.num_tokens, **options}
        if self.model.unet is not None:
            options = {"cross_attention_heads": factors_shape(self.model.unet), **options}
        if self.model.embedder == "clip_text" and self.model.text_encoder is not None:
            text = self.model.text_encoder
            options = {"decoder_heads": (text.num_layers, text.num_heads), **options}
        elif decoder is not None:
            options = {"decoder_heads": (decoder.num_layers, decoder.num_heads), **options}
        if decoder is not None:
            options = {"max_positions": decoder.max_positions, **options}
        options = {"vocabulary": self.model.vocabulary, **options}
        return lay_out(self.tokenizer, prompts, **options)


def find_bundle(name: str | Path) -> Path:
    """The directory of a bundle given by path, by the name of an embedded one, or as hf:ORG/NAME[@REVISION].

    Raises UserError, naming the embedded ones, when there is none, and as `hub.download` does.
    """
    if hub.is_address(name):
        return hub.download(name, lambda names: bundle_files(names, str(name))).path
    for path in (local(name), ASSETS / str(name)):
        if (path / "config.json").is_file():
            return path
    known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    what = "has no config.json" if Path(name).is_dir() else "is neither a directory nor an embedded bundle"
    raise UserError(f"no bundle {str(name)!r}: it {what} (embedded: {', '.join(known) or 'none'})")


def bundle_files(names: Sequence[str], where: str) -> list[str]:
    """Of the paths below a folder, those of a bundle. Raises UserError where they are none's."""
    parts = [name for name in names if name.partition("/")[0] in (*COMPONENTS, "tokenizer") and "/" in name]
    if "config.json" not in names or not any(name.endswith("/_METADATA") for name in parts):
        raise UserError(
            f"{where} is no bundle of mvader; weights of other programs become one with `mvader convert`"
        )
    return ["config.json", *parts]


def read_config(path: str | Path) -> dict[str, Any]:
    """The JSON of a bundle's config. Raises UserError when it is damaged or of a newer format."""
    file = Path(path) / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{file} is not a bundle config of format {FORMAT}")
    return data


def load_bundle(
    name: str | Path,
    *,
    components: Collection[str] | None = None,
    mesh: Mesh | None = None,
    dtype: str | jnp.dtype | None = None,
) -> Bundle:
    """Reads a bundle, or those of its `components` that are named.

    On a mesh every device reads only its own shards, by the table in `parallel/sharding.py`;
    without one the parameters come to the default device. dtype: what floating parameters are cast
    to; None keeps them as stored. Raises UserError for an unknown bundle, or a component it lacks.
    """
    path = find_bundle(name)
    data = read_config(path)
    model = from_dict(ModelConfig, data.get("model", {}), f"{path}/config.json: model")
    records = dict(data.get("components", {}))
    wanted = list(records) if components is None else list(components)
    missing = [c for c in wanted if c not in records]
    if missing:
        raise UserError(
            f"bundle {str(name)!r} has no {' and no '.join(missing)}; it holds {', '.join(sorted(records))}"
        )
    abstract, axes = abstract_components(model, wanted)
    trees = {}
    for component in wanted:
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if dtype is None else jnp.dtype(dtype)),
            abstract[component],
        )
        shardings = None if mesh is None else param_shardings(target, axes[component], mesh)
        tree = checkpoint.restore_tree(path / component, abstract=target, shardings=shardings, dtype=dtype)
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
    rows, own = model.vocabulary, tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if rows is not None and max(own, tokenizer.config.eos_id + 1) > rows:
        raise UserError(
            f"the tokenizer of {what} has {own} tokens, but the model's embedding has {rows} rows: it belongs to "
            "another model"
        )


def not_ours(path: Path) -> str:
    """What, in words, of a directory that is to be replaced is no bundle of this package; "" where it is one.

    An empty directory may be replaced too.
    """
    if not path.is_dir():
        return "it is not a directory"
    held = {entry.name for entry in path.iterdir()}
    if not held:
        return ""
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
        names = set(data["components"]) | {"tokenizer", "config.json"}
        known = data["format"] == FORMAT and set(data) == {"format", "model", "components"}
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        return "it holds no bundle that mvader wrote"
    foreign = sorted(held - names)
    return f"beside a bundle it holds {', '.join(foreign[:4])}" if foreign else ""


def save_bundle(path: str | Path, bundle: Bundle, *, overwrite: bool = False) -> None:
    """Writes a bundle atomically. Raises UserError when `path` exists and `overwrite` is not set."""
    with whole_directory(path, overwrite=overwrite, not_ours=not_ours) as work:
        write_bundle(work, bundle)


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Writes a bundle's files into a directory that exists (see `save_bundle` for the whole way).

    The processes of a job call it together, each writing its shards.
    """
    records = {}
    for name, tree in bundle.components.items():
        checkpoint.save_tree(path / name, tree)
        records[name] = {**bundle.records.get(name, {}), **summary(tree)}
    if first_process():
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(path / "tokenizer")
        write_config(path, bundle.model, records)


def write_config(path: Path, model: ModelConfig, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a bundle's config.json."""
    data = {"format": FORMAT, "model": to_dict(model), "components": {k: dict(v) for k, v in records.items()}}
    (path / "config.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parameter_count(tree: Tree) -> int:
    """The numbers of a component."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


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


def overlay_components(bundles: list[Bundle]) -> Bundle:
    """One bundle out of several, later ones replacing components (and their configs) of earlier ones."""
    fields = {f.name: getattr(bundles[0].model, f.name) for f in dataclasses.fields(ModelConfig)}
    components: dict[str, Tree] = {}
    records: dict[str, dict[str, Any]] = {}
    tokenizer = None
    for bundle in bundles:
        for f in dataclasses.fields(ModelConfig):
            value = getattr(bundle.model, f.name)
            if value is not None:
                fields[f.name] = value
        components.update(bundle.components)
        records.update(bundle.records)
        tokenizer = bundle.tokenizer or tokenizer
    return Bundle(ModelConfig(**fields), components, tokenizer, records)


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
    (path / "config.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
