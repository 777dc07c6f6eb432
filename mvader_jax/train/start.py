"""Where a stage starts: components from earlier bundles or made anew, and the tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from mvader_jax.data.loader import captions_of
from mvader_jax.data.sources.encoded import encoded_shapes, parts_of, read_info
from mvader_jax.errors import UserError
from mvader_jax.models.components import COPIES, abstract_components, init_component, outdated
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_kind, embedder_of
from mvader_jax.models.quantised import kept_in
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer
from mvader_jax.storage.bundle import Bundle, carry_over, load_bundle, write_bundle
from mvader_jax.storage.bundle_config import find_bundle, read_model
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.lora import component_of

#: Captions the tokenizer learns from where a stage has none to start with.
TOKENIZER_CAPTIONS = 20_000
#: Captions that are looked through for words, where the bundle knows its few.
_WORDS_OF = 2_000


@dataclasses.dataclass
class Start:
    """bundle: the components this stage computes with; unused: {component: its directory}, components of
    the earlier bundles that only travel on to this stage's result; read: the same of those that were read; notes:
    sentences for a person on what does not travel on, for it learnt from what trains here, and on what is taught on."""

    bundle: Bundle
    unused: dict[str, Path]
    fresh: tuple[str, ...]
    read: dict[str, Path]
    notes: tuple[str, ...]

    def write(self, path: Path, bundle: Bundle, groups: Iterable[str]) -> None:
        """Writes a stage's result, with the unused components, into a directory that exists.

        What did not train goes on as the earlier bundle has it, whatever dtype it was computed in: data that it encoded
        stays good. groups: paths of parameters that trained.
        """
        trained = {component_of(path) for path in groups}
        kept = {c: p for c, p in self.read.items() if c not in trained}
        own = {c: tree for c, tree in bundle.components.items() if c not in kept}
        write_bundle(path, dataclasses.replace(bundle, components=own))
        carry_over(path, {**self.unused, **kept})


def needed_components(model: ModelConfig, stage: Stage) -> tuple[str, ...]:
    """Which components a stage computes with."""
    return stage.objective.components(model, parts_of(stage.data), drawn=stage.sample_every > 0)


def gather_start(config: TrainConfig, stage: Stage, workdir: str | Path, mesh: Mesh) -> Start:
    """Loads what the stage's `init` bundles hold and makes the rest anew.

    Raises UserError where an earlier stage is not finished, or a bundle's architecture is not the config's.
    """
    model, sources, tokenizer = earlier_components(config, stage, workdir)
    stage.objective.check_model(model)
    needed = needed_components(model, stage)
    abstract_components(model, needed)  # says what the model lacks before anything is read
    check_precomputed(model, stage, sources)
    if tokenizer is None and stage.objective.reads_text:
        if model.tokenizer is None or model.decoder is None:
            raise UserError(
                f"config {config.name!r} has no tokenizer, and none of its init bundles holds one"
            )
        tokenizer = train_tokenizer(
            captions_of(stage.data, TOKENIZER_CAPTIONS),
            model.decoder.vocab_size,
            max_positions=model.decoder.max_positions,
        )
        model = dataclasses.replace(model, tokenizer=tokenizer.config)
    elif tokenizer is not None and tokenizer.words is not None and stage.objective.reads_text:
        # Where the source itself is not at hand, what was encoded of it before is trained on.
        with contextlib.suppress(UserError):
            tokenizer = tokenizer.trained_on(captions_of(stage.data, _WORDS_OF, positions=_WORDS_OF))

    components: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    fresh = []
    copied = {COPIES[name] for name in needed if name in COPIES and name not in sources}
    names = dict(zip(needed, jax.random.split(jax.random.key(stage.seed), len(needed)), strict=True))
    for component, key in names.items():
        if component in sources:
            # What stays frozen is read straight into its dtype: it is never there twice. What another is to start
            # from is rounded later.
            whole = component in copied or trains(model, component, stage)
            dtype, integers = (None, None) if whole else kept_in(stage.frozen_dtype, stage.dtype)
            loaded = load_bundle(
                sources[component],
                components=[component],
                mesh=mesh,
                dtype=dtype,
                integers=integers if component == "decoder" else None,
            )
            components[component] = loaded.components[component]
            records[component] = loaded.records[component]
        else:
            fresh.append(component)
            components[component] = init_component(model, component, key, mesh, components)
    changed = [c for c in components if c in COPIES.values() and (c in stage.lora or trains(model, c, stage))]
    left = outdated(changed, sources.keys() - components.keys())
    unused = {c: path / c for c, path in sources.items() if c not in components and c not in left}
    read = {c: path / c for c, path in sources.items() if c in components}
    taught = [f"{name} is taught on, from {read[name]}" for name in COPIES if name in read]
    notes = (*left.values(), *taught)
    return Start(Bundle(model, components, tokenizer, records), unused, tuple(fresh), read, notes)


def trains(model: ModelConfig, component: str, stage: Stage) -> bool:
    """Whether any parameter of a component belongs to a group of the stage."""
    shapes, _ = abstract_components(model, [component])
    patterns = [group.parameters for group in stage.groups.values()]
    return any(re.fullmatch(p, path) for path in flatten_dict(shapes, sep="/") for p in patterns)


def earlier_components(
    config: TrainConfig, stage: Stage, workdir: str | Path
) -> tuple[ModelConfig, dict[str, Path], Tokenizer | None]:
    """(the config's model as its `init` bundles have it, {component: its bundle}, their tokenizer).

    Parts that the config's model leaves out are those of the bundles; where it leaves out all, the embedder too.
    Raises UserError as `gather_start`, and where neither has any.
    """
    sources: dict[str, Path] = {}
    tokenizer: Tokenizer | None = None
    model = config.model
    for name in stage.init:
        path = _locate(config, name, workdir)
        theirs, records = read_model(path)
        for component in outdated(records, sources):
            del sources[component]
        for component in records:
            if component == "adapters" and config.model.decoder and config.model.adapters is None:
                continue  # V1 of the paper: a decoder without adapters leaves those of its bundles behind
            sources[component] = path
            model = _adopt(config.model, model, theirs, component, path)
        if (path / "tokenizer").is_dir() and theirs.tokenizer is not None:
            model = dataclasses.replace(model, tokenizer=theirs.tokenizer)
            tokenizer = Tokenizer.load(path / "tokenizer", theirs.tokenizer)
    if not model.parts:
        raise UserError(
            f"config {config.name!r} names no model, and its stage no init bundle that it could be taken from"
        )
    return stage.objective.extended(model), sources, tokenizer


def component_hash(path: Path, component: str) -> str | None:
    """The SHA-256 of a component's parameters as its bundle records it; None where it does not."""
    return read_model(path)[1][component].get("sha256")


def check_states(model: ModelConfig, stage: Stage) -> tuple[int, ...]:
    """The shape of the hidden states of a stage's prompts. Raises UserError where a stage cannot do with stored ones."""
    shape = stage.objective.states(model)
    for component in embedder_of(model).components:
        if component in stage.lora or trains(model, component, stage):
            raise UserError(
                f"states cannot be computed before a stage in which {component} train: they change with every step"
            )
    if stage.sample_every or stage.optimizer.whiten:
        setting = "sample_every" if stage.sample_every else "optimizer.whiten"
        raise UserError(f"{setting} needs the decoder, which a stage with precomputed states does not load")
    return shape


def check_precomputed(model: ModelConfig, stage: Stage, sources: Mapping[str, Path]) -> None:
    """Raises UserError if precomputed data was made by other parameters than the stage starts from, or of other
    prompts."""
    stored = encoded_shapes(stage.data).states
    if stored is not None and stored != check_states(model, stage):
        raise UserError(
            f"the precomputed states are of {stored[0]} positions for a picture, {stored[1]} for a caption and "
            f"{stored[2]} for the null prompt, {stored[3]} wide; the stage's are {stage.objective.states(model)}"
        )
    for path in stage.data.precomputed:
        for component, theirs in read_info(path).components.items():
            mine = component_hash(sources[component], component) if component in sources else None
            if mine and theirs and mine != theirs:
                raise UserError(
                    f"{path!r} was encoded by another {component} than that of {sources[component]}; encode again"
                )


def _locate(config: TrainConfig, name: str, workdir: str | Path) -> Path:
    if name in config.stages:
        path = Path(workdir) / name / "bundle"
        if not (path / "config.json").is_file():
            raise UserError(
                f"stage {name!r} has no finished bundle at {path}; train it first (--stage {name})"
            )
        return path
    return find_bundle(name)


def with_model(config: TrainConfig, stage_name: str, workdir: str | Path) -> TrainConfig:
    """The config; where it names no model, with that of the stage's `init` bundles. Raises UserError as they do."""
    if config.model != ModelConfig():
        return config
    model, _, _ = earlier_components(config, config.stage(stage_name), workdir)
    return dataclasses.replace(config, model=model)


def _adopt(
    own: ModelConfig, model: ModelConfig, other: ModelConfig, component: str, path: Path
) -> ModelConfig:
    """`model` with a component's architecture from the bundle that holds it, which must be the config's own, if
    that has one."""
    if component == "biases":
        return model
    mine, theirs = getattr(own, component), getattr(other, component)
    if own == ModelConfig() and component == embedder_kind(other.embedder).reader:
        model = dataclasses.replace(model, embedder=other.embedder)
    if component == "unet" and own.schedule is None:
        model = dataclasses.replace(model, schedule=other.schedule)
    if component == "vae" and mine is not None and theirs is not None:
        # The scale of the latents is measured when the autoencoder is finished.
        mine = dataclasses.replace(mine, scaling_factor=theirs.scaling_factor)
    if mine is not None and mine != theirs:
        raise UserError(
            f"the {component} in {path} has another architecture than the config's: {theirs} against {mine}"
        )
    return dataclasses.replace(model, **{component: theirs})
