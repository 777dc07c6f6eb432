"""Compiles a program ahead of time and reads what it costs per chip; results are kept by the program's hash."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.parallel.pods import Topology
from mvader_jax.plan.hlo import cost
from mvader_jax.plan.program import Program
from mvader_jax.plan.topology import places
from mvader_jax.storage import programs
from mvader_jax.storage.atomic import make_directory, sweep, write_file

#: Raised when what is kept of a program changes. Its text is kept too: reading more of it compiles nothing.
FORMAT = 2
Say = Callable[[str], None]
Result = dict[str, Any]


def compile_program(
    program: Program, topology: Topology, effort: float, say: Say, cache: bool = True
) -> Result:
    """What one run of the program costs per chip, compiled. Raises UserError where XLA refuses the program.

    Returns: seconds and cpu_seconds (of tracing and compiling), memory {arguments, outputs, aliased,
    temporaries, code, peak} in bytes or {needed, limit} where it does not fit, flops, kernel_flops,
    convolution_flops, once_flops, bytes, launches, cycles, saturated, unknown_loops, xla {flops, bytes accessed,
    optimal_seconds}, collectives [{kind, axes, count, payload, wire, seconds}].
    """
    started, worked = time.monotonic(), time.process_time()
    say("tracing the program")
    lowered = program.lower()
    text = lowered.as_text()
    versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")}
    options = {**effort_option(effort), **program.compiler_options}
    recipe = [FORMAT, topology.name, topology.slices, options, versions, list(program.mesh.shape.items())]
    recipe += [flag for flag in programs.compiler_flags() if flag]
    key = hashlib.sha256(f"{json.dumps(recipe)}\n{text}".encode()).hexdigest()[:32]
    path = cache_directory() / f"{key}.json"
    kept = path.with_suffix(".hlo.gz")
    if cache and path.is_file():
        say("the program was compiled before")
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        if kept.is_file():
            result.update(measure(gzip.decompress(kept.read_bytes()).decode(), program, topology))
        return result
    say(f"compiling {len(text) >> 20} MiB of StableHLO for {topology.name} at effort {effort:g}")
    compiled_text = ""
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:  # jaxlib's XlaRuntimeError
        memory = refused_memory(str(error))
        if memory is None:
            raise UserError(f"XLA does not compile the program: {str(error).splitlines()[0]}") from None
        result = {"memory": memory}
    else:
        compiled_text = compiled.as_text()
        result = {"memory": memory_of(compiled.memory_analysis()), "xla": _xla(compiled.cost_analysis())}
    result["seconds"] = time.monotonic() - started
    result["cpu_seconds"] = time.process_time() - worked
    result["versions"] = versions
    if cache:
        sweep(make_directory(path.parent))
        if compiled_text:
            write_file(kept, gzip.compress(compiled_text.encode(), 3))
        write_file(path, json.dumps(result))
    if compiled_text:
        say("reading the compiled program")
        result.update(measure(compiled_text, program, topology))
    return result


def effort_option(effort: float) -> dict[str, Any]:
    """XLA's effort, -1 to 1, as the installed JAX takes it: 0.12 knows levels alone, the lowest of them O0."""
    if hasattr(jax.config, "jax_exec_time_optimization_effort"):
        return {"exec_time_optimization_effort": float(effort)}
    if effort == 0:
        return {}
    return {"optimization_level": "O0" if effort <= -1 else "O1" if effort < 0 else "O3"}


def cache_directory() -> Path:
    """Where results are kept: below the directory of compiled programs."""
    return programs.cache_directory() / "plans"


def memory_of(stats: Any) -> dict[str, int]:
    """Bytes per chip of a compiled program, from XLA's statistics."""
    memory = {
        "arguments": int(stats.argument_size_in_bytes),
        "outputs": int(stats.output_size_in_bytes),
        "aliased": int(stats.alias_size_in_bytes),
        "temporaries": int(stats.temp_size_in_bytes),
        "code": int(stats.generated_code_size_in_bytes),
    }
    memory["peak"] = sum(memory.values()) - 2 * memory["aliased"]
    return memory


def refused_memory(message: str) -> dict[str, int] | None:
    """{needed, limit} in bytes from XLA's complaint that a program does not fit, or None for another one."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", message)
    if not match:
        return None
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return {
        "needed": round(float(match[1]) * unit[match[2]]),
        "limit": round(float(match[3]) * unit[match[4]]),
    }


def measure(text: str, program: Program, topology: Topology) -> Result:
    """FLOPs, bytes and collectives of a compiled text, with the time each collective takes at least."""
    found = cost.cost(text)
    where = places(list(program.mesh.devices.flat))
    mesh = dict(program.mesh.shape)
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"count": 0, "payload": 0, "wire": 0.0, "seconds": 0.0}
    )
    for collective in found.collectives:
        axes = collective.groups.axes(mesh) if collective.groups else ()
        row = rows[collective.kind, "+".join(axes) or "none"]
        row["count"] += collective.times
        row["payload"] += collective.times * collective.payload
        row["wire"] += collective.wire_bytes
        row["seconds"] += collective_seconds(collective, topology, where)
    return {
        "flops": found.flops,
        "kernel_flops": found.kernel_flops,
        "convolution_flops": found.convolution_flops,
        "once_flops": found.once_flops,
        "bytes": found.bytes,
        "launches": found.launches,
        "cycles": found.cycles,
        "saturated": found.saturated,
        "unknown_loops": found.unknown_loops,
        "collectives": [
            {"kind": kind, "axes": axes, **row}
            for (kind, axes), row in sorted(rows.items(), key=lambda item: -item[1]["seconds"])
        ],
    }


def collective_seconds(
    collective: cost.Collective, topology: Topology, where: list[tuple[int, tuple[int, ...]]]
) -> float:
    """Time on the links for all of a collective's times (estimated): its part inside a slice on the chip
    interconnect, its part between slices on the data-centre network."""
    if collective.groups is None or collective.groups.size < 2:
        return 0.0
    group = max(collective.groups.members, key=len)
    slices: dict[int, list[tuple[int, ...]]] = {}
    for member in group:
        number, place = where[member]
        slices.setdefault(number, []).append(place)
    inside = len(next(iter(slices.values())))
    double = 2.0 if collective.kind == "all-reduce" else 1.0
    seconds = 0.0
    if inside > 1:
        sent = double * collective.payload * (inside - 1) / inside
        seconds += sent / topology.bandwidth(next(iter(slices.values())))
    if len(slices) > 1:
        sent = double * collective.payload / inside * (len(slices) - 1) / len(slices)
        seconds += sent / (topology.chip.dcn_gbps * 1e9)
    if collective.kind == "collective-permute":
        seconds = collective.payload / (topology.chip.ici_gbps * 1e9)
    return collective.times * seconds


def _xla(costs: Any) -> dict[str, float]:
    row = costs[0] if isinstance(costs, (list, tuple)) else costs
    keys = ("flops", "bytes accessed", "optimal_seconds")
    return {key: float(np.asarray(row[key])) for key in keys if key in (row or {})}


def _version(name: str) -> str:
    if name == "jax":
        return str(jax.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
