"""Which meshes and batch splits are worth compiling: all of them, ranked by a model of the step.

The model knows what is exact without compiling (the state's bytes by the table of shardings, FLOPs by the
jaxpr) and estimates the rest: every microbatch gathers the frozen weights once and those that train twice,
and scatters their gradients; `tensor` reduces activations after every block. Nothing it says is printed
as more than an estimate; the best are then compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import MeshConfig
from mvader_jax.parallel.pods import Topology
from mvader_jax.train.config import Stage

#: What `tensor` really moves, over the reductions that the model knows: convolutions exchange channels and remat
#: repeats it all (a compiled plan of luminous_v2 on v5e-256, data=2,fsdp=64,tensor=2).
TENSOR_EXTRA = 3.8
#: Share of the memory that the ranking lets a program use: its own estimate of activations is rough.
ROOM = 0.9


@dataclasses.dataclass(frozen=True)
class Work:
    """What a training step has to do, on whatever mesh.

    components: those that the step computes with; trained: those of them of which parameters train.
    frozen_size, trained_size: parameters. flops: of the step with its remat, over all devices. positions:
    tokens that the decoder reads per sample.
    """

    model: ModelConfig
    stage: Stage
    components: frozenset[str]
    trained: frozenset[str]
    frozen_size: float
    trained_size: float
    flops: float
    positions: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a number of microbatches; memory: bytes per chip; arithmetic, interconnect: seconds per step.
    All estimated."""

    mesh: MeshConfig
    accumulate: int
    memory: float
    arithmetic: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.interconnect)

    def name(self) -> str:
        axes = ",".join(f"{axis}={size}" for axis, size in dataclasses.asdict(self.mesh).items() if size > 1)
        return axes or "data=1"


def splits(topology: Topology, stage: Stage) -> Iterator[tuple[MeshConfig, int]]:
    """Every mesh of powers of two on the pod with every number of microbatches that divides the batch."""
    inside = topology.chips * topology.chip.cores // topology.slices
    for tensor in _powers(min(8, inside)):
        for fsdp in _powers(inside // tensor):
            if inside % (tensor * fsdp):
                continue
            mesh = MeshConfig(topology.slices, inside // (tensor * fsdp), fsdp, tensor)
            ways = topology.slices * inside // tensor
            if stage.batch_size % ways:
                continue
            for accumulate in _powers(stage.batch_size // ways):
                if stage.objective.accumulates or accumulate == 1:
                    yield mesh, accumulate


def rank(
    topology: Topology, work: Work, divides: Callable[[MeshConfig], bool] = lambda mesh: True
) -> list[Candidate]:
    """Candidates that should fit, fastest first; where none should, those nearest to it.

    divides: whether the table of shardings takes a mesh. Raises UserError where it takes none.
    """
    taken = functools.cache(divides)
    found = [
        estimate(topology, work, mesh, accumulate)
        for mesh, accumulate in splits(topology, work.stage)
        if taken(mesh)
    ]
    if not found:
        raise UserError(f"no mesh divides both {topology.name} and the batch of {work.stage.batch_size}")
    limit = ROOM * topology.chip.hbm_bytes / topology.chip.cores
    fitting = [c for c in found if c.memory <= limit]
    if not fitting:
        return sorted(found, key=lambda c: c.memory)
    # Of equally fast ones the one that leaves more memory, then the fewest microbatches.
    return sorted(fitting, key=lambda c: (round(c.seconds, 4), c.accumulate, c.memory))


def estimate(topology: Topology, work: Work, mesh: MeshConfig, accumulate: int) -> Candidate:
    """The model of one step on one mesh."""
    chip, cores, stage = topology.chip, topology.chip.cores, work.stage
    devices = topology.chips * cores
    sharded = mesh.fsdp * mesh.tensor
    frozen = work.frozen_size * (2 if stage.frozen_dtype == "bfloat16" else 4)
    # float32 parameters, two moments and the average; gradients of one step.
    trained = work.trained_size * 4
    rows = stage.batch_size / (devices / mesh.tensor) / accumulate
    memory = (frozen + 5 * trained) / sharded + rows * sample_bytes(work)
    # One layer's worth of weights, gathered, is alive at a time; the UNet's are not scanned.
    memory += 0.3e9

    arithmetic = work.flops / devices / (chip.peak / cores)
    link = chip.ici_gbps * 1e9
    width = 2.0 if stage.dtype == "bfloat16" else 4.0

    def share(n: int) -> float:
        return (n - 1) / n

    gathered = frozen * _walks(work) + 2 * work.trained_size * width
    sent = gathered / mesh.tensor * share(mesh.fsdp) * accumulate
    sent += trained / mesh.tensor * share(mesh.fsdp) * accumulate
    seconds = sent / (_links(topology, mesh.fsdp) * link)
    reduced = 2 * trained / sharded * share(mesh.data) * accumulate
    seconds += reduced / (_links(topology, mesh.data) * link)
    if mesh.tensor > 1:
        seconds += (
            TENSOR_EXTRA
            * 2
            * rows
            * accumulate
            * _reduced_activations(work)
            * width
            * share(mesh.tensor)
            / (_links(topology, mesh.tensor) * link)
        )
        # Convolutions keep whole channels: their kernels are gathered over `tensor` too.
        seconds += 2 * work.trained_size * width / mesh.fsdp * accumulate * share(mesh.tensor) / link
    if mesh.replica > 1:
        seconds += 2 * trained / sharded * share(mesh.replica) * accumulate / (chip.dcn_gbps * 1e9)
    return Candidate(mesh, accumulate, memory, arithmetic, seconds)


def sample_bytes(work: Work) -> float:
    """Bytes of activations per sample of the UNet's step (estimated): what enters its blocks, or with remat
    "none" some twenty arrays per block, and what is alive at its widest, fitted to the plans in tpu/plans."""
    c, stage = work.model.unet, work.stage
    if c is None or "unet" not in work.components:
        return 50e6
    width = 2 if stage.dtype == "bfloat16" else 4
    total = widest = 0.0
    for level, channels in enumerate(c.block_out_channels):
        size = (c.sample_size >> level) ** 2 * channels * width
        blocks = (2 * c.layers_per_block + 1) * (2 if c.attention[level] else 1)
        total += blocks * size * {"none": 20, "products": 8, "blocks": 1}[stage.remat]
        widest = max(widest, 130 * size)
    return total + widest


def _walks(work: Work) -> int:
    """How often a step needs the frozen weights: again in a backward pass, where what trains stands before the
    decoder or in it."""
    return 1 + bool(work.trained - {"unet", "vae"})


def _reduced_activations(work: Work) -> float:
    """Numbers per sample that `tensor` reduces: two per decoder layer, three per transformer of the UNet and
    again in its backward pass."""
    total, model = 0.0, work.model
    if model.decoder is not None:
        total += 2 * model.decoder.num_layers * work.positions * model.decoder.width
    if model.unet is not None:
        c = model.unet
        for level, channels in enumerate(c.block_out_channels):
            if c.attention[level]:
                total += 6 * (2 * c.layers_per_block + 1) * (c.sample_size >> level) ** 2 * channels
    return total


def _links(topology: Topology, ways: int) -> int:
    """How many links a chip has for a collective among `ways` chips that lie as squarely as they can."""
    dims = 0
    left = ways
    for dim, side in sorted(enumerate(topology.shape), key=lambda item: -item[1]):
        part = math.gcd(left, side)
        if part > 1:
            dims += 2 if part == side and topology.wraps(dim) else 1
            left //= part
    return max(dims, 1)


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def describe(candidates: list[Candidate], shown: int = 10) -> list[dict[str, Any]]:
    """The first candidates as plain values, for a table or JSON."""
    return [
        {
            "mesh": c.name(),
            "microbatches": c.accumulate,
            "memory_gib": round(c.memory / 2**30, 2),
            "arithmetic_ms": round(1e3 * c.arithmetic, 1),
            "interconnect_ms": round(1e3 * c.interconnect, 1),
            "kind": "estimated",
        }
        for c in candidates[:shown]
    ]
