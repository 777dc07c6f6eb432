"""Precomputing what frozen parts make of every picture: the VAE's posterior and the image encoder's features.

The pictures are encoded over the whole mesh. A file is written by one process, whichever the number of
processes, so that a stopped run goes on with the files that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import decode, encoder_pixels
from mvader_jax.data.order import DamagedRecord, Dataset
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import BF16, INFO, PARTS, Encoded, EncodedInfo, pack, shard_path
from mvader_jax.data.sources.open import open_pictures
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.processes import barrier, by_first, first_process
from mvader_jax.parallel.sharding import batch_sharding
from mvader_jax.settings import to_dict
from mvader_jax.storage.atomic import local, make_directory, write_file
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.objectives.base import unit_pixels
from mvader_jax.train.sizes import sized
from mvader_jax.train.start import component_hash, earlier_components

SPLITS: tuple[Split, ...] = ("train", "validation")
#: What is drawn has no end: so many pictures of its validation split are enough.
VALIDATION_DRAWN = 1024
_WORK, _PLAN = "unfinished", "plan.json"
_COMPONENT = {"latents": "vae", "features": "image_encoder"}

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """How far stored arrays lie from those computed anew, in units of the last place of bfloat16 of the
    array's own scale (its root mean square); `records` were compared."""

    records: int
    worst: float

    #: Other batches round differently by an ulp or so; anything wrong is off by hundreds.
    LIMIT = 8.0


@dataclasses.dataclass(frozen=True)
class _Job:
    """Everything that stays the same while encoding."""

    model: ModelConfig
    params: dict[str, Any]
    data: DataConfig
    info: EncodedInfo
    mesh: Mesh
    dtype: Any
    batch_size: int
    run: Callable[..., Arrays]

    @property
    def rows(self) -> int:
        """Rows of a batch that this process reads."""
        return self.batch_size // jax.process_count()


def encode(
    config: TrainConfig,
    stage_name: str,
    data: DataConfig,
    out: str | os.PathLike[str],
    mesh: Mesh,
    *,
    workdir: str | Path,
    parts: Sequence[str] = (),
    batch_size: int = 64,
    shard_size: int = 4096,
    sample: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[EncodedInfo, Check]:
    """Encodes every picture of `data` with the parts that the stage starts from.

    out: folder, the same for all processes; an unfinished one is gone on with.
    parts: of `encoded.PARTS`; default, those that the model has. batch_size: of all processes together.
    shard_size: records a file. sample: records computed anew at the end and compared with the stored ones.
    on_progress: called with (records done, records in all).
    Pictures that cannot be read are counted by reason, and so marked in their place.
    Raises UserError for data without pictures, a model without the parts, a folder that holds something
    else, and where the comparison fails.
    """
    directory = local(out)
    stage = dataclasses.replace(config.stage(stage_name), data=data)
    job, sources = _prepare(config, stage, workdir, mesh, parts, batch_size, shard_size)
    on_progress = on_progress or (lambda done, total: None)
    if (directory / INFO).exists():
        finished = EncodedInfo.from_json(json.loads((directory / INFO).read_text()))
        if dataclasses.replace(finished, damaged={}) != job.info:
            raise UserError(f"{os.fspath(out)!r} holds an encoded set of other data or another model")
        with jax.set_mesh(mesh):
            return finished, _check(job, os.fspath(out), sources, sample)
    _begin(directory, job)
    with jax.set_mesh(mesh):
        _run(job, directory, sources, on_progress)
        info = _finish(job, directory)
        found = _check(job, os.fspath(out), sources, sample)
    if first_process():
        shutil.rmtree(directory / _WORK)
    return info, found


def _prepare(
    config: TrainConfig,
    stage: Stage,
    workdir: str | Path,
    mesh: Mesh,
    parts: Sequence[str],
    batch_size: int,
    shard_size: int,
) -> tuple[_Job, dict[Split, Dataset]]:
    model, found, _ = earlier_components(config, stage, workdir)
    if not parts:
        parts = [part for part in PARTS if getattr(model, _COMPONENT[part]) is not None]
        if model.embedder == "clip_text":
            parts = [part for part in parts if part != "features"]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}; accepted: {', '.join(PARTS)}")
        if _COMPONENT[part] not in found:
            raise UserError(
                f"{part} are made by the {_COMPONENT[part]}, and no bundle in the stage's init holds one "
                f"(init: {', '.join(stage.init) or 'none'})"
            )
    ways = math.prod(mesh.shape[axis] for axis in ("replica", "data", "fsdp"))
    if batch_size % math.lcm(ways, jax.process_count()):
        raise UserError(f"a batch of {batch_size} does not divide over {ways} devices")
    if stage.data.crop == "random" or stage.data.flip:
        raise UserError("one crop of each picture is encoded: set crop='centre' and flip=0")

    factor = model.vae.multiple if model.vae else 0
    data = dataclasses.replace(sized(stage.data, model), precomputed=())
    side = data.image_size
    sources: dict[Split, Dataset] = {split: open_pictures(data, split)[0] for split in SPLITS}
    params = {
        _COMPONENT[part]: load_bundle(
            found[_COMPONENT[part]], components=[_COMPONENT[part]], mesh=mesh
        ).components[_COMPONENT[part]]
        for part in parts
    }
    latents = features = None
    encoder = model.image_encoder
    if "latents" in parts:
        assert model.vae is not None
        latents = (2, side // factor, side // factor, model.vae.latent_channels)
    if "features" in parts:
        assert encoder is not None
        features = (encoder.num_tokens, encoder.token_width)
    lengths = {split: len(sources[split]) for split in SPLITS}
    if data.source.drawn:
        lengths["validation"] = min(lengths["validation"], VALIDATION_DRAWN)
    info = EncodedInfo(
        latents=latents,
        features=features,
        image_size=side,
        encoder_size=encoder.image_size if features and encoder else 0,
        splits={str(split): length for split, length in lengths.items()},
        shard_size=shard_size,
        origin=data.source.origin(data.seed, data.image_size),
        components={_COMPONENT[p]: component_hash(found[_COMPONENT[p]], _COMPONENT[p]) for p in parts},
    )
    dtype = jnp.dtype(stage.dtype)
    return _Job(model, params, data, info, mesh, dtype, batch_size, _compiled(model, mesh, dtype)), sources


@functools.lru_cache(maxsize=4)
def _compiled(model: ModelConfig, mesh: Mesh, dtype: Any) -> Callable[..., Arrays]:
    def run(params: dict[str, Any], batch: Arrays) -> Arrays:
        out = {}
        if "vae" in params:
            mean, logvar = VAE(model.vae, dtype).apply(
                {"params": params["vae"]}, unit_pixels(batch["pixels"]), method="encode"
            )
            out["latents"] = jnp.stack([mean, logvar], axis=1)
        if "image_encoder" in params:
            out["features"] = ImageEncoder(model.image_encoder, dtype).apply(
                {"params": params["image_encoder"]}, batch["encoder_pixels"]
            )
        return {name: value.astype(jnp.bfloat16) for name, value in out.items()}

    return jax.jit(run, out_shardings=batch_sharding(mesh))


def _begin(directory: Path, job: _Job) -> None:
    """Makes the folder, or recognises an unfinished run of the same kind. Process 0 alone writes."""
    plan = json.dumps({"info": job.info.to_json(), "model": to_dict(job.model)}, indent=1, sort_keys=True)
    file = directory / _WORK / _PLAN

    def begin() -> None:
        try:
            if file.exists():
                if file.read_text() != plan:
                    raise UserError(
                        f"{os.fspath(directory)!r} holds an unfinished encoding of other data or by another "
                        "model; delete it or name a new folder"
                    )
            elif directory.exists() and any(directory.iterdir()):
                raise UserError(f"{os.fspath(directory)!r} is not empty; name a new folder")
            else:
                make_directory(file.parent)
                write_file(file, plan)
        except OSError as error:
            raise UserError(f"cannot write to {os.fspath(directory)!r}: {error.strerror or error}") from None

    by_first(begin)


def _run(
    job: _Job, directory: Path, sources: dict[Split, Dataset], on_progress: Callable[[int, int], None]
) -> None:
    shards = [(split, number) for split in SPLITS for number in range(len(job.info.shards(split)))]
    done = by_first(lambda: [_report(directory, *shard).exists() for shard in shards])
    lengths = [len(job.info.shards(split)[number]) for split, number in shards]
    total, ready = sum(lengths), sum(n for n, known in zip(lengths, done, strict=True) if known)
    on_progress(ready, total)
    missing = [shard for shard, known in zip(shards, done, strict=True) if not known]
    count = jax.process_count()
    for first in range(0, len(missing), count):
        # Every process takes part in every step of the round, also those without a file of their own.
        round_ = missing[first : first + count]
        steps = max(math.ceil(len(job.info.shards(split)[number]) / job.rows) for split, number in round_)
        mine = round_[jax.process_index()] if jax.process_index() < len(round_) else None
        before = ready
        for step in _shard(job, directory, sources, mine, steps):
            on_progress(min(before + step * job.batch_size, total), total)
        ready += sum(len(job.info.shards(split)[number]) for split, number in round_)
        on_progress(ready, total)


def _shard(
    job: _Job,
    directory: Path,
    sources: dict[Split, Dataset],
    shard: tuple[Split, int] | None,
    steps: int,
) -> Iterator[int]:
    """Encodes one file (or joins in for others), and yields after every step."""
    if shard is None:
        for step in range(1, steps + 1):
            _arrays(job, [])
            yield step
        return
    split, number = shard
    numbers = job.info.shards(split)[number]
    source = sources[split]
    path = shard_path(directory, split, number)
    # An object store shows a file when it is closed; elsewhere the report says that it is whole.
    from array_record.python.array_record_module import ArrayRecordWriter

    damaged: Counter[str] = Counter()
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    rows = _read_ahead(job, source, numbers)
    try:
        for step in range(1, steps + 1):
            batch = list(itertools.islice(rows, job.rows))
            arrays = _arrays(job, [row["image"] for row in batch if "image" in row])
            place = 0
            for row in batch:
                if "image" not in row:
                    damaged[row["reason"]] += 1
                    writer.write(f"! {row['reason']}".encode())
                    continue
                values = [arrays[part][place] if part in arrays else None for part in PARTS]
                writer.write(pack(values[0], values[1], row["captions"]))
                place += 1
            yield step
    finally:
        writer.close()
    report = _report(directory, split, number)
    write_file(report, json.dumps(damaged))


def _read_ahead(job: _Job, source: Dataset, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The records in order, decoded by threads."""

    def read(number: int) -> dict[str, Any]:
        return read_picture(source, number, job.data)

    threads = max(job.data.threads, 1)
    rows = grain.MapDataset.source(list(numbers)).map(read)
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)))


def read_picture(source: Dataset, number: int, data: DataConfig) -> dict[str, Any]:
    """{"image": uint8 [H, W, 3], "captions"}, or {"reason"} for a picture that cannot be had."""
    rng = np.random.default_rng([data.seed, number])
    try:
        record = source.record(number, rng)
        image = decode(record, data, rng, (data.image_size, data.image_size))["image"]
    except (DamagedRecord, UserError) as error:
        return {"reason": str(error)}
    return {"image": image, "captions": data.source.captions(source, number)}


def _arrays(job: _Job, pictures: Sequence[np.ndarray]) -> Arrays:
    """{part: bfloat16 [N, ...]} of this process's pictures; all processes call it together."""
    side = job.info.image_size
    blank = np.zeros((side, side, 3), np.uint8)
    rows = [*pictures, *[blank] * (job.rows - len(pictures))]
    batch: Arrays = {}
    if job.info.latents:
        batch["pixels"] = np.stack(rows)
    if job.info.features:
        batch["encoder_pixels"] = encoder_pixels(rows, job.info.encoder_size)
    out = job.run(job.params, make_global(batch, job.mesh))
    return {part: _own_rows(value)[: len(pictures)] for part, value in out.items()}


def _own_rows(value: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded by row."""
    shards = {shard.index[0].start or 0: shard.data for shard in value.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _finish(job: _Job, directory: Path) -> EncodedInfo:
    barrier()
    damaged: Counter[str] = Counter()
    for split in SPLITS:
        for number in range(len(job.info.shards(split))):
            damaged.update(json.loads(_report(directory, split, number).read_text()))
    info = dataclasses.replace(job.info, damaged=dict(damaged.most_common()))
    if first_process():
        write_file(directory / INFO, json.dumps(info.to_json(), indent=1))
    barrier()
    return info


def _check(job: _Job, out: str, sources: dict[Split, Dataset], sample: int) -> Check:
    """Compares `sample` stored records with ones computed anew. Raises UserError where they differ."""
    stored = Encoded(out, "train", job.data)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(stored))[: max(sample // job.rows, 1) * job.rows]
    compared, worst = 0, 0.0
    for at in range(0, len(chosen), job.rows):
        kept, pictures = [], []
        for number in chosen[at : at + job.rows]:
            row = read_picture(sources["train"], int(number), job.data)
            with contextlib.suppress(DamagedRecord):
                record = stored.record(int(number), rng)
                if "image" in row:
                    kept.append(record)
                    pictures.append(row["image"])
        arrays = _arrays(job, pictures)
        compared += len(kept)
        for part, values in arrays.items():
            for value, record in zip(values, kept, strict=True):
                worst = max(worst, _distance(value, record[part]))
    if worst > Check.LIMIT:
        raise UserError(
            f"{out!r} does not hold what its model computes: a record differs by {worst:.0f} units in the last "
            "place; delete the folder and encode again"
        )
    return Check(compared, worst)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    scale = float(np.sqrt(np.mean(np.square(a)))) or 1.0
    ulp = np.maximum(np.abs(a), scale) * float(jnp.finfo(BF16).eps)
    return float(np.max(np.abs(a - b) / ulp))


def _report(directory: Path, split: str, number: int) -> Path:
    return directory / _WORK / f"{split}-{number:05d}.json"
