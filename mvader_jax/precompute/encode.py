"""Precomputing what frozen parts make of every picture: the VAE's posterior and the image encoder's features.

The pictures are encoded over the whole mesh. A file is written by one process, whichever the number of
processes, so that a stopped run goes on with the files that are missing.
"""

from __future__ import annotations

import dataclasses
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
from jax.sharding import Mesh

from mvader_jax.data.config import DataConfig
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import INFO, NULL, PARTS, EncodedInfo, pack, read_info, shard_path
from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import barrier, by_first, first_process
from mvader_jax.precompute.check import Check, check
from mvader_jax.precompute.job import SPLITS, Job, Options, prepare
from mvader_jax.settings import to_dict
from mvader_jax.storage.atomic import local, make_directory, write_file
from mvader_jax.train.config import TrainConfig

_WORK, _PLAN = "unfinished", "plan.json"
DEFAULTS = Options()
#: Called with (records done, records in all).
OnProgress = Callable[[int, int], None]


def encode(
    config: TrainConfig,
    stage_name: str,
    data: DataConfig,
    out: str | os.PathLike[str],
    mesh: Mesh,
    *,
    workdir: str | Path,
    options: Options = DEFAULTS,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[EncodedInfo, Check]:
    """Encodes every picture of `data` with the parts that the stage starts from.

    out: folder, the same for all processes; an unfinished one is gone on with.
    Pictures that cannot be read are counted by reason, and so marked in their place.
    Raises UserError for data without pictures, a model without the parts, a folder that holds something
    else, and where the comparison at the end fails.
    """
    directory = local(out)
    stage = dataclasses.replace(config.stage(stage_name), data=data)
    job = prepare(config, stage, workdir, mesh, options)
    if (directory / INFO).exists():
        finished = read_info(directory)
        if dataclasses.replace(finished, damaged={}) != job.info:
            raise UserError(f"{os.fspath(out)!r} holds an encoded set of other data or another model")
        with jax.set_mesh(mesh):
            return finished, check(job, os.fspath(out), options.sample)
    _begin(directory, job)
    with jax.set_mesh(mesh):
        _run(job, directory, on_progress)
        info = _finish(job, directory)
        found = check(job, os.fspath(out), options.sample)
    if first_process():
        shutil.rmtree(directory / _WORK)
    return info, found


def _begin(directory: Path, job: Job) -> None:
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


def _run(job: Job, directory: Path, on_progress: OnProgress) -> None:
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
        for step in _shard(job, directory, mine, steps):
            on_progress(min(before + step * job.batch_size, total), total)
        ready += sum(len(job.info.shards(split)[number]) for split, number in round_)
        on_progress(ready, total)


def _shard(job: Job, directory: Path, shard: tuple[Split, int] | None, steps: int) -> Iterator[int]:
    """Encodes one file (or joins in for others), and yields after every step."""
    if shard is None:
        for step in range(1, steps + 1):
            job.arrays([], [])
            yield step
        return
    split, number = shard
    numbers = job.info.shards(split)[number]
    path = shard_path(directory, split, number)
    # An object store shows a file when it is closed; elsewhere the report says that it is whole.
    from array_record.python.array_record_module import ArrayRecordWriter

    damaged: Counter[str] = Counter()
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    rows = _read_ahead(job, split, numbers)
    try:
        for step in range(1, steps + 1):
            batch = list(itertools.islice(rows, job.rows))
            whole = [row for row in batch if "image" in row]
            arrays = job.arrays([row["image"] for row in whole], [row["captions"] for row in whole])
            place = 0
            for row in batch:
                if "image" not in row:
                    damaged[row["reason"]] += 1
                    writer.write(f"! {row['reason']}".encode())
                    continue
                values = [arrays[part][place] if part in arrays else None for part in PARTS]
                writer.write(pack(values[0], values[1], row["captions"], values[2]))
                place += 1
            yield step
    finally:
        writer.close()
    report = _report(directory, split, number)
    write_file(report, json.dumps(damaged))


def _read_ahead(job: Job, split: Split, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The records in order, decoded by threads."""

    def read(number: int) -> dict[str, Any]:
        return job.picture(split, number)

    threads = max(job.data.threads, 1)
    rows = grain.MapDataset.source(list(numbers)).map(read)
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)))


def _finish(job: Job, directory: Path) -> EncodedInfo:
    barrier()
    damaged: Counter[str] = Counter()
    for split in SPLITS:
        for number in range(len(job.info.shards(split))):
            damaged.update(json.loads(_report(directory, split, number).read_text()))
    info = dataclasses.replace(job.info, damaged=dict(damaged.most_common()))
    states = job.null_states()
    if first_process():
        if states is not None:
            write_file(directory / NULL, states.tobytes())
        write_file(directory / INFO, json.dumps(info.to_json(), indent=1))
    barrier()
    return info


def _report(directory: Path, split: str, number: int) -> Path:
    return directory / _WORK / f"{split}-{number:05d}.json"
