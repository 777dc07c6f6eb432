"""What a run says before its first step: where it runs, on what, what trains, how long, and in how much memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from mvader_jax.models.quantised import SCALE, kept_in
from mvader_jax.parallel.sharding import bytes_per_device
from mvader_jax.train.config import Stage
from mvader_jax.train.job import Job
from mvader_jax.train.origin import data_in_words
from mvader_jax.train.run import Run


def banner(job: Job) -> list[str]:
    """Lines for a person. Nothing is computed for them: parameters and memory are counted from shapes."""
    run, stage = job.run, job.run.stage
    start = f", from {', '.join(stage.init)}" if stage.init else ""
    fresh = f"; made anew: {', '.join(run.start.fresh)}" if run.start.fresh else ""
    return [
        f"objective {'; '.join((stage.objective.kind + start + fresh, *run.start.notes))}",
        f"devices   {_devices(run.mesh)}",
        f"records   {_records(stage, job.loader.records)}",
        *(f"trains    {group}" for group in _groups(run)),
        f"frozen    {_frozen(run)}",
        f"steps     {_steps(stage, job.step)}",
        f"memory    {_memory(run)}",
    ]


def _devices(mesh: Mesh) -> str:
    axes = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "data=1"
    processes = jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{of}, mesh {axes}"


def _records(stage: Stage, records: int) -> str:
    epochs = stage.steps * stage.batch_size / records
    return f"{records:,} ({data_in_words(stage.data)}), each read {epochs:,.3g} times"


def _groups(run: Run) -> list[str]:
    count: Counter[str] = Counter()
    for path, leaf in flatten_dict(run.state.trainable, sep="/").items():
        count[run.groups[path]] += leaf.size
    return [
        f"{name}: {count[name]:,} parameters ({group.parameters}) at {group.learning_rate:g}"
        for name, group in run.stage.groups.items()
    ]


def _frozen(run: Run) -> str:
    count: Counter[str] = Counter()
    for path, leaf in flatten_dict(run.state.frozen, sep="/").items():
        if not path.endswith(f"/{SCALE}"):
            count[path.split("/")[0]] += leaf.size
    if not count:
        return "nothing"
    parts = ", ".join(f"{component} {size:,}" for component, size in count.items())
    kept, integers = kept_in(run.stage.frozen_dtype, run.stage.dtype)
    if integers is not None:
        kept = f"{integers} (the decoder's matrices) and {kept}"
    return f"{count.total():,} parameters in {kept} ({parts})"


def _steps(stage: Stage, done: int) -> str:
    optimizer = stage.optimizer
    split = f" in {stage.accumulate} microbatches" if stage.accumulate > 1 else ""
    warm_up = f"{optimizer.warmup_steps:,} of warm-up" if optimizer.warmup_steps else "no warm-up"
    rate = "a constant rate" if optimizer.decay == "constant" else f"{optimizer.decay} decay"
    gone = f", {done:,} of them done" if done else ""
    return f"{stage.steps:,}{gone}, batches of {stage.batch_size:,}{split}; {warm_up}, then {rate}"


def _memory(run: Run) -> str:
    """The state, whose shapes say all, and the gradients of a step; what lies between depends on the compiler."""
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        run.state,
        run.shardings,
    )
    trained = bytes_per_device(state.trainable)
    parts = {
        "parameters": trained + bytes_per_device(state.frozen),
        "optimizer": bytes_per_device(state.opt_state),
        "average": bytes_per_device(state.ema),
        "gradients": trained,
    }
    has = (_statistics(run.mesh) or {}).get("bytes_limit")
    of = f" of {_size(has)}" if has else ""
    each = ", ".join(f"{name} {_size(nbytes)}" for name, nbytes in parts.items())
    return f"{_size(sum(parts.values()))}{of} per device and activations, an estimate from shapes ({each})"


def _statistics(mesh: Mesh) -> dict[str, Any] | None:
    mine = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mine[0].memory_stats() if mine else None


def _size(nbytes: float) -> str:
    if nbytes < 2**20:
        return f"{math.ceil(nbytes / 2**10)} KiB"
    return f"{nbytes / 2**20:.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"
