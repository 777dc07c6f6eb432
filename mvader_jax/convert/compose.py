"""Components of several bundles put together into one, their files linked or copied, unread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvader_jax.convert.convert import Progress, counter
from mvader_jax.convert.engine import shapes
from mvader_jax.convert.vocabulary import load_vocabulary
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.components import COMPONENTS, JUDGES, abstract_components, outdated
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import EMBEDDERS, embedder_kind, find_embedder
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle import check_whole, component_files, link_component, same_disk
from mvader_jax.storage.bundle_config import find_bundle, not_ours, read_model, write_config
from mvader_jax.storage.reader import ComponentReader, Leaf
from mvader_jax.storage.stream import write_component


@dataclasses.dataclass(frozen=True)
class _Found:
    """A component where it lies, with its bundle's model and its record."""

    directory: Path
    model: ModelConfig
    record: dict[str, Any]


def compose(
    out: Path,
    parts: Mapping[str, Path],
    *,
    tokenizer: Path | None = None,
    embedder: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Writes the bundle `out` from components of other bundles; returns notes for the user.

    parts: {component: the bundle it comes from}. tokenizer: a folder or bundle, in place of that of the
    decoder's (or text encoder's) bundle. embedder: one of EMBEDDERS; by default S-MAGMA where there is a
    decoder. Where the UNet's cross-attention is of another width than the embedder's hidden states, its
    to_k and to_v are made anew from `seed`: the start of M-VADER's training (paper, table 1). Raises
    UserError where a bundle lacks its component, or components do not fit each other.
    """
    if not parts:
        options = ", ".join("--" + name.replace("_", "-") for name in COMPONENTS if name not in JUDGES)
        raise UserError(f"no components were given; pass some of: {options}")
    found = {name: _find(path, name) for name, path in parts.items()}
    model, notes = _model(found, embedder)
    model, vocabulary = _with_tokenizer(model, found, tokenizer, notes)
    width = _condition_width(model)
    stale = _stale(model, found, width)
    if stale and model.unet is not None and width is not None:
        notes.append(
            f"the UNet's cross-attention was {model.unet.cross_attention_dim} wide and the hidden states are {width}: "
            f"{len(stale)} matrices attn2 to_k and to_v are freshly initialised and need training"
        )
        model = dataclasses.replace(model, unet=dataclasses.replace(model.unet, cross_attention_dim=width))
    _check(model, found, stale)
    for item in found.values():
        check_whole(item.directory.parent, item.directory.name)
    sizes = {
        name: sum(file.stat().st_size for file in component_files(item.directory))
        for name, item in found.items()
    }
    if stale:
        sizes["unet"] *= 2  # at most: the new matrices are wider than the old ones
    advance = counter(progress, sum(sizes.values()))
    linked = {name for name, item in found.items() if same_disk(item.directory, out)} - (
        {"unet"} if stale else set()
    )
    needed = sum(size for name, size in sizes.items() if name not in linked)
    records = {}
    sources = [*_others(out, found), *([] if tokenizer is None else [tokenizer])]
    with whole_directory(out, overwrite=overwrite, not_ours=not_ours, sources=sources, needed=needed) as work:
        for name, item in found.items():
            records[name] = item.record
            if name == "unet" and stale:
                made = write_component(work / name, _unet_leaves(item, stale, width, seed), advance)
                records[name] = {**item.record, **made, "fresh": f"attn2 to_k, to_v from seed {seed}"}
            else:
                link_component(item.directory, work / name, advance)
        if vocabulary is not None:
            (work / "tokenizer").mkdir()
            vocabulary.save(work / "tokenizer")
        write_config(work, model, records)
    return tuple(notes)


def with_base(
    base: Path, parts: Mapping[str, Path], without: Sequence[str]
) -> tuple[dict[str, Path], str | None, tuple[str, ...]]:
    """(`parts` and the other components of the bundle `base` but those named in `without`; its embedder, None where
    another network may read the prompts; notes for the user).

    Of `base` a `unet_fast` that learnt from another UNet than that of `parts` is left out, too. Raises UserError for a
    component that `base` has not, or that is given.
    """
    model, records = read_model(find_bundle(base))
    for name in without:
        if name not in records or name in parts:
            why = (
                "is given as well"
                if name in parts
                else f"{base} has none; it holds {', '.join(sorted(records))}"
            )
            raise UserError(f"{name} is to be left out, but {why}")
    left = outdated(parts, records.keys() - without)
    rest = {name: base for name in records if name not in {*without, *left}}
    readers = {kind.reader for kind in EMBEDDERS.values()}
    return {**rest, **parts}, None if readers & parts.keys() else model.embedder, tuple(left.values())


def _find(path: Path, name: str) -> _Found:
    bundle = find_bundle(path)
    model, records = read_model(bundle)
    if name == "unet_fast" and name not in records and model.unet is not None and model.unet.distilled:
        # A converted LCM has no other UNet.
        found = _find(path, "unet")
        return dataclasses.replace(found, model=dataclasses.replace(model, unet_fast=model.unet))
    if name not in records:
        raise UserError(f"{path} has no {name}; it holds {', '.join(sorted(records)) or 'nothing'}")
    return _Found(bundle / name, model, records[name])


def _others(out: Path, found: Mapping[str, _Found]) -> list[Path]:
    """The bundles read beside `out` itself. Raises UserError where `out` has components that would be lost."""
    bundles = {item.directory.parent for item in found.values()}
    own = {bundle for bundle in bundles if out.exists() and bundle.samefile(out)}
    lost = sorted({name for bundle in own for name in read_model(bundle)[1]} - set(found))
    if lost:
        raise UserError(f"{out} is a source itself and would lose its {', '.join(lost)}; name another place")
    return sorted(bundles - own)


def _model(found: Mapping[str, _Found], embedder: str | None) -> tuple[ModelConfig, list[str]]:
    fields: dict[str, Any] = {}
    for name, item in found.items():
        if name != "biases":
            fields[COMPONENTS[name]] = getattr(item.model, COMPONENTS[name])
    if "decoder" not in fields:
        # Adapters and biases take their shapes from a decoder, though the bundle holds none.
        for name in ("biases", "adapters"):
            if name in found:
                fields.setdefault("decoder", found[name].model.decoder)
    if "unet" in found or "unet_fast" in found:
        fields["schedule"] = _schedule(found)
    if embedder is None:
        reading = (name for name, kind in EMBEDDERS.items() if kind.reader in found)
        embedder = next(reading, ModelConfig.embedder)
    used = embedder_kind(embedder).reader
    idle = [kind.reader for kind in EMBEDDERS.values() if kind.reader in found and kind.reader != used]
    notes = [
        f"prompts go through the {_words(used)} ({embedder}); the {_words(name)} is carried along unused"
        for name in idle
    ]
    return ModelConfig(embedder=embedder, **fields), notes


def _schedule(found: Mapping[str, _Found]) -> ScheduleConfig | None:
    """The UNet's, with the steps that its few-step twin was taught in. Raises UserError where they differ in more."""
    one, fast = (found[name].model.schedule if name in found else None for name in ("unet", "unet_fast"))
    if one is None or fast is None:
        return one or fast
    for name in ("num_train_steps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        if getattr(one, name) != getattr(fast, name):
            raise UserError(
                f"the unet_fast was taught with {name} {getattr(fast, name)}, but the unet has {getattr(one, name)}; "
                "they do not belong together"
            )
    return dataclasses.replace(one, original_steps=fast.original_steps)


def _words(component: str) -> str:
    return component.replace("_", " ")


def _with_tokenizer(
    model: ModelConfig, found: Mapping[str, _Found], given: Path | None, notes: list[str]
) -> tuple[ModelConfig, Tokenizer | None]:
    """(the model with its tokenizer's config, the tokenizer): the given one, or that of who reads the prompts."""
    name = embedder_kind(model.embedder).reader
    reader = found.get(name)
    if reader is None:
        if given is not None:
            raise UserError(f"--tokenizer has no place here: without a {name} nothing reads a text")
        return dataclasses.replace(model, tokenizer=None), None
    config = reader.model.tokenizer
    own = reader.directory.parent / "tokenizer"
    if given is None:
        tokenizer = Tokenizer.load(own, config) if own.is_dir() and config is not None else None
        return dataclasses.replace(model, tokenizer=config), tokenizer
    folder = given / "tokenizer" if (given / "tokenizer").is_dir() else given
    rows = getattr(reader.model, name).vocab_size
    tokenizer, said = load_vocabulary(folder, config, rows)
    notes += said
    return dataclasses.replace(model, tokenizer=tokenizer.config), tokenizer


def _condition_width(model: ModelConfig) -> int | None:
    embedder = find_embedder(model)
    return None if embedder is None else embedder.width


def _stale(model: ModelConfig, found: Mapping[str, _Found], width: int | None) -> frozenset[str]:
    """Paths of the UNet's matrices whose input is no longer of their width."""
    if "unet" not in found or model.unet is None or width in (None, model.unet.cross_attention_dim):
        return frozenset()
    paths = ComponentReader(found["unet"].directory).paths
    return frozenset(p for p in paths if p.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel")))


def _check(model: ModelConfig, found: Mapping[str, _Found], stale: frozenset[str]) -> None:
    """Raises UserError where components do not fit each other."""
    decoder, prefix, encoder = model.decoder, model.image_prefix, model.image_encoder
    pairs = []
    if decoder is not None and prefix is not None:
        pairs.append(("image prefix's width", prefix.width, "decoder's width", decoder.width))
    if encoder is not None and prefix is not None:
        pairs.append(("image prefix's input", prefix.in_width, "image encoder's output", encoder.token_width))
    if model.unet is not None and model.vae is not None:
        pairs.append(
            ("UNet's channels", model.unet.in_channels, "VAE's latent channels", model.vae.latent_channels)
        )
    if model.unet is not None:
        pairs.append(("UNet's input", model.unet.in_channels, "UNet's output", model.unet.out_channels))
    if model.unet_fast is not None:
        width = model.unet_fast.cross_attention_dim
        pairs.append(
            (
                "few-step UNet's cross-attention",
                width,
                "hidden states' width",
                _condition_width(model) or width,
            )
        )
        channels = model.unet_fast.in_channels
        pairs.append(
            (
                "few-step UNet's channels",
                channels,
                "UNet's",
                model.unet.in_channels if model.unet else channels,
            )
        )
    for what, have, other, need in pairs:
        if have != need:
            raise UserError(f"the {what} is {have}, but the {other} {need}; they do not belong together")
    abstract, _ = abstract_components(model, found)
    for name, item in found.items():
        reader = ComponentReader(item.directory)
        expected = shapes(abstract[name])
        wrong = list(set(expected) ^ set(reader.paths))
        wrong += [
            path
            for path, shape in expected.items()
            if path in reader.paths and path not in stale and reader.shape(path) != shape
        ]
        if wrong:
            raise UserError(
                f"{name} of {item.directory.parent} does not fit the other components: {', '.join(sorted(wrong)[:4])}"
                f"{' ...' if len(wrong) > 4 else ''}"
            )


def _unet_leaves(item: _Found, stale: frozenset[str], width: int | None, seed: int) -> list[Leaf]:
    reader = ComponentReader(item.directory)
    init = jax.nn.initializers.lecun_normal()
    leaves = []
    for path, key in zip(
        reader.paths, jax.random.split(jax.random.key(seed), len(reader.paths)), strict=True
    ):
        if path not in stale:
            leaves.append(reader.leaf(path))
            continue
        assert width is not None
        shape, dtype = (width, reader.shape(path)[1]), reader.dtype(path)

        def fresh(
            key: jax.Array = key, shape: tuple[int, ...] = shape, dtype: np.dtype = dtype
        ) -> Iterator[np.ndarray]:
            yield np.asarray(init(key, shape)).astype(dtype)

        leaves.append(Leaf(path, shape, dtype, False, fresh))
    return leaves
