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
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import decode, encoder_pixels
from mvader_jax.data.order import DamagedRecord, Dataset
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import PARTS, EncodedInfo
from mvader_jax.data.sources.open import open_pictures
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import to_float
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import find_embedder
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.sharding import batch_sharding
from mvader_jax.settings import Checked
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.sizes import encoded_parts, sized
from mvader_jax.train.start import component_hash, earlier_components

SPLITS: tuple[Split, ...] = ("train", "validation")
#: What is drawn has no end: so many pictures of its validation split are enough.
VALIDATION_DRAWN = 1024
#: Which component makes a part.
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
    """Everything that stays the same while encoding. sources: the pictures of each split."""

    model: ModelConfig
    params: dict[str, Any]
    data: DataConfig
    sources: Mapping[Split, Dataset]
    info: EncodedInfo
    mesh: Mesh
    dtype: str
    batch_size: int

    @property
    def rows(self) -> int:
        """Rows of a batch that this process reads."""
        return self.batch_size // jax.process_count()

    def arrays(self, pictures: Sequence[np.ndarray]) -> Arrays:
        """{part: bfloat16 [N, ...]} of this process's pictures; all processes call it together."""
        side = self.info.image_size
        blank = np.zeros((side, side, 3), np.uint8)
        rows = [*pictures, *[blank] * (self.rows - len(pictures))]
        batch: Arrays = {}
        if self.info.latents:
            batch["pixels"] = np.stack(rows)
        if self.info.features:
            batch["encoder_pixels"] = encoder_pixels(rows, self.info.encoder_size)
        run = _compiled(self.model, self.mesh, self.dtype)
        out = run(self.params, make_global(batch, self.mesh))
        return {part: _own_rows(value)[: len(pictures)] for part, value in out.items()}

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
    model, found, _ = earlier_components(config, stage, workdir)
    parts = _parts(model, stage, found, options.parts)
    ways = math.prod(mesh.shape[axis] for axis in ("replica", "data", "fsdp"))
    if options.batch_size % math.lcm(ways, jax.process_count()):
        raise UserError(f"a batch of {options.batch_size} does not divide over {ways} devices")
    if stage.data.crop == "random" or stage.data.flip:
        raise UserError("one crop of each picture is encoded: set crop='centre' and flip=0")
    data = dataclasses.replace(sized(stage.data, model), precomputed=())
    sources: dict[Split, Dataset] = {split: open_pictures(data, split)[0] for split in SPLITS}
    components = [COMPONENT[part] for part in parts]
    params = {
        name: load_bundle(found[name], components=[name], mesh=mesh).components[name] for name in components
    }
    lengths = {split: len(sources[split]) for split in SPLITS}
    if data.source.drawn:
        lengths["validation"] = min(lengths["validation"], VALIDATION_DRAWN)
    shapes, encoder = encoded_parts(model, data, parts), model.image_encoder
    info = EncodedInfo(
        latents=shapes.latents,
        features=shapes.features,
        image_size=data.image_size,
        encoder_size=encoder.image_size if shapes.features and encoder else 0,
        splits={str(split): length for split, length in lengths.items()},
        shard_size=options.shard_size,
        origin=data.source.origin(data.seed, data.image_size),
        components={name: component_hash(found[name], name) for name in components},
    )
    return Job(model, params, data, sources, info, mesh, stage.dtype, options.batch_size)


def _parts(
    model: ModelConfig, stage: Stage, found: Mapping[str, Path], asked: Sequence[str]
) -> Sequence[str]:
    """The parts that are asked for, or those that the model has. Raises UserError where they cannot be made."""
    parts = asked
    if not parts:
        parts = [part for part in PARTS if getattr(model, COMPONENT[part]) is not None]
        embedder = find_embedder(model)
        if embedder is not None and embedder.image_encoder is None:
            parts = [part for part in parts if part != "features"]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}; accepted: {', '.join(PARTS)}")
        if COMPONENT[part] not in found:
            raise UserError(
                f"{part} are made by the {COMPONENT[part]}, and no bundle in the stage's init holds one "
                f"(init: {', '.join(stage.init) or 'none'})"
            )
    return parts


@functools.lru_cache(maxsize=4)
def _compiled(model: ModelConfig, mesh: Mesh, dtype: str) -> Callable[..., Arrays]:
    def run(params: dict[str, Any], batch: Arrays) -> Arrays:
        out = {}
        if "vae" in params:
            mean, logvar = VAE(model.vae, jnp.dtype(dtype)).apply(
                {"params": params["vae"]}, to_float(batch["pixels"]), method="encode"
            )
            out["latents"] = jnp.stack([mean, logvar], axis=1)
        if "image_encoder" in params:
            out["features"] = ImageEncoder(model.image_encoder, jnp.dtype(dtype)).apply(
                {"params": params["image_encoder"]}, batch["encoder_pixels"]
            )
        return {name: value.astype(jnp.bfloat16) for name, value in out.items()}

    return jax.jit(run, out_shardings=batch_sharding(mesh))


def _own_rows(value: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded by row."""
    shards = {shard.index[0].start or 0: shard.data for shard in value.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
