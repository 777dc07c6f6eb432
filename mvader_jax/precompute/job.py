"""What an encoding needs to know: the networks, the pictures, and what the set of records will be."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mvader_jax.bounds import NonNegativeInt, PositiveInt
from mvader_jax.condition import PromptBatch
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import decode, encoder_pixels
from mvader_jax.data.order import DamagedRecord, Dataset
from mvader_jax.data.prompts import caption_rows
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import PARTS, EncodedInfo
from mvader_jax.data.sources.open import open_pictures
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_float
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed, embed_rows, embedder_of, find_embedder
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.quantised import kept_in
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.sharding import batch_sharding, replicated
from mvader_jax.prompt.tokenizer import Tokenizer
from mvader_jax.settings import Checked
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.sizes import encoded_parts, sized
from mvader_jax.train.start import check_states, component_hash, earlier_components

SPLITS: tuple[Split, ...] = ("train", "validation")
#: What is drawn has no end: so many pictures of its validation split are enough.
VALIDATION_DRAWN = 1024
#: Which component makes a part; states are made by all that the embedder reads.
COMPONENT = {"latents": "vae", "features": "image_encoder"}

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """parts: of `encoded.PARTS`; none for those that the model has. batch_size: pictures per step, of all processes
    together. shard_size: records per file. sample: records computed anew at the end and compared with the stored ones.
    """

    parts: tuple[str, ...] = ()
    batch_size: PositiveInt = 64
    shard_size: PositiveInt = 4096
    sample: NonNegativeInt = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that stays the same while encoding. sources: the pictures of each split. tokenizer, null_prompt: of the
    stage, for states."""

    model: ModelConfig
    params: dict[str, Any]
    data: DataConfig
    sources: Mapping[Split, Dataset]
    info: EncodedInfo
    mesh: Mesh
    dtype: str
    batch_size: int
    tokenizer: Tokenizer | None = None
    null_prompt: PromptBatch | None = None

    @property
    def rows(self) -> int:
        """Rows of a batch that this process reads."""
        return self.batch_size // jax.process_count()

    def arrays(self, pictures: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> Arrays:
        """{part: bfloat16 [N, ...]} of this process's pictures and their captions; all processes call it together.

        Raises UserError for a picture of several captions, where there are states.
        """
        side = self.info.image_size
        blank = np.zeros((side, side, 3), np.uint8)
        rows = [*pictures, *[blank] * (self.rows - len(pictures))]
        batch: Arrays = {}
        if self.info.latents:
            batch["pixels"] = np.stack(rows)
        if self.info.encoder_size:
            batch["encoder_pixels"] = encoder_pixels(rows, self.info.encoder_size)
        if self.info.states:
            batch["captions"] = self._prompts([*captions, *[[""]] * (self.rows - len(captions))])
        run = _compiled(self.model, self.mesh, self.dtype, self.info.parts)
        out = run(self.params, make_global(batch, self.mesh))
        return {part: _own_rows(value)[: len(pictures)] for part, value in out.items()}

    def _prompts(self, captions: Sequence[Sequence[str]]) -> PromptBatch:
        assert self.tokenizer is not None and self.info.states is not None
        if any(len(each) > 1 for each in captions):
            raise UserError(
                "states are computed of one caption for each picture, and here pictures have several: leave out "
                "--part states"
            )
        words = [one for (one,) in captions]
        return caption_rows(self.tokenizer, words, self.info.states[1], self.info.encoder_size)

    def null_states(self) -> np.ndarray | None:
        """bfloat16 [N, D]: the hidden states of the null prompt, if states are made. All processes call it together."""
        if self.info.states is None or self.null_prompt is None:
            return None
        run = functools.partial(embed, self.model, dtype=jnp.dtype(self.dtype))
        hidden = jax.jit(run, out_shardings=replicated(self.mesh))(self.params, self.null_prompt).hidden
        return np.asarray(hidden[0].astype(jnp.bfloat16))

    def picture(self, split: Split, number: int) -> dict[str, Any]:
        """{"image": uint8 [H, W, 3], "captions"}, or {"reason"} for a picture that cannot be had."""
        data, source = self.data, self.sources[split]
        rng = np.random.default_rng([data.seed, number])
        try:
            record = source.record(number, rng)
            image = decode(record, data, rng, (data.image_size, data.image_size))["image"]
        except (DamagedRecord, UserError) as error:
            return {"reason": str(error)}
        return {"image": image, "captions": data.source.captions(source, number)}


def prepare(config: TrainConfig, stage: Stage, workdir: str | Path, mesh: Mesh, options: Options) -> Job:
    """Raises UserError for data without pictures, a model without the parts, and a batch that does not divide."""
    model, found, tokenizer = earlier_components(config, stage, workdir)
    parts = _parts(model, stage, found, options.parts)
    ways = math.prod(mesh.shape[axis] for axis in ("replica", "data", "fsdp"))
    if options.batch_size % math.lcm(ways, jax.process_count()):
        raise UserError(f"a batch of {options.batch_size} does not divide over {ways} devices")
    if stage.data.crop == "random" or stage.data.flip:
        raise UserError("one crop of each picture is encoded: set crop='centre' and flip=0")
    data = dataclasses.replace(sized(stage.data, model), precomputed=())
    sources: dict[Split, Dataset] = {split: open_pictures(data, split)[0] for split in SPLITS}
    states = check_states(model, stage) if "states" in parts else None
    null = None if states is None else stage.objective.null_prompt(model)
    if states is not None and data.source.wording("train", data.seed, data.image_size) is not None:
        raise UserError(
            f"states are computed of one caption for each picture, and the source {data.source.kind} words its "
            "captions anew: leave out --part states"
        )
    components = list(dict.fromkeys(name for part in parts for name in _makers(model, part) if name in found))
    params = {name: _load(found[name], name, stage, mesh, states is not None) for name in components}
    lengths = {split: len(sources[split]) for split in SPLITS}
    if data.source.drawn:
        lengths["validation"] = min(lengths["validation"], VALIDATION_DRAWN)
    shapes, encoder = encoded_parts(model, data, parts, states), model.image_encoder
    info = EncodedInfo(
        latents=shapes.latents,
        features=shapes.features,
        image_size=data.image_size,
        states=shapes.states,
        encoder_size=encoder.image_size if (shapes.features or states) and encoder else 0,
        splits={str(split): length for split, length in lengths.items()},
        shard_size=options.shard_size,
        origin=data.source.origin(data.seed, data.image_size),
        components={name: component_hash(found[name], name) for name in components},
    )
    return Job(model, params, data, sources, info, mesh, stage.dtype, options.batch_size, tokenizer, null)


def _makers(model: ModelConfig, part: str) -> tuple[str, ...]:
    """The components that make a part. What they lack of biases are the decoder's own."""
    return embedder_of(model).components if part == "states" else (COMPONENT[part],)


def _load(path: Path, name: str, stage: Stage, mesh: Mesh, embeds: bool) -> Any:
    """A component; embeds: as the stage would keep it, for its hidden states are to be the stage's."""
    dtype, integers = kept_in(stage.frozen_dtype, stage.dtype) if embeds and name != "vae" else (None, None)
    loaded = load_bundle(
        path,
        components=[name],
        mesh=mesh,
        dtype=dtype,
        integers=integers if name == "decoder" else None,
    )
    return loaded.components[name]


def _parts(
    model: ModelConfig, stage: Stage, found: Mapping[str, Path], asked: Sequence[str]
) -> Sequence[str]:
    """The parts that are asked for, or those that the model has. Raises UserError where they cannot be made."""
    parts = asked
    if not parts:
        parts = [part for part in ("latents", "features") if getattr(model, COMPONENT[part]) is not None]
        embedder = find_embedder(model)
        if embedder is not None and embedder.image_encoder is None:
            parts = [part for part in parts if part != "features"]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}; accepted: {', '.join(PARTS)}")
        missing = [name for name in _makers(model, part) if name not in found and name != "biases"]
        if missing:
            raise UserError(
                f"{part} are made by the {missing[0]}, and no bundle in the stage's init holds one "
                f"(init: {', '.join(stage.init) or 'none'})"
            )
    return parts


@functools.lru_cache(maxsize=4)
def _compiled(model: ModelConfig, mesh: Mesh, dtype: str, parts: frozenset[str]) -> Callable[..., Arrays]:
    def run(params: dict[str, Any], batch: Arrays) -> Arrays:
        out = {}
        if "latents" in parts:
            mean, logvar = VAE(model.vae, jnp.dtype(dtype)).apply(
                {"params": params["vae"]}, to_float(batch["pixels"]), method="encode"
            )
            out["latents"] = jnp.stack([mean, logvar], axis=1)
        if "encoder_pixels" in batch:
            features = ImageEncoder(model.image_encoder, jnp.dtype(dtype)).apply(
                {"params": params["image_encoder"]}, batch["encoder_pixels"]
            )
        if "features" in parts:
            out["features"] = features
        if "states" in parts:
            prompts = [batch["captions"]]
            if "encoder_pixels" in batch:
                prompts.insert(0, _pictures(features))
            found = embed_rows(model, params, prompts, dtype=jnp.dtype(dtype))
            out["states"] = jnp.concatenate([condition.hidden for condition in found], axis=1)
        return {name: value.astype(jnp.bfloat16) for name, value in out.items()}

    return jax.jit(run, out_shardings=batch_sharding(mesh))


def _pictures(features: jax.Array) -> PromptBatch:
    """Prompts of one picture each, from the encoder's features [N, T, C] of these."""
    shape = features.shape[:2]
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    none = jnp.zeros(shape, jnp.float32)
    return PromptBatch(jnp.zeros_like(index), features[:, None], index, none, none)


def _own_rows(value: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded by row."""
    shards = {shard.index[0].start or 0: shard.data for shard in value.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
