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

import jax.numpy as jnp

from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.unet import UNetConfig
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
    frozen_bytes: of the frozen parameters; trained_size: parameters. flops: of the step with its remat, over all
    devices. positions, predicted: tokens per sample that the decoder reads and predicts.
    """

    model: ModelConfig
    stage: Stage
    components: frozenset[str]
    trained: frozenset[str]
    frozen_bytes: float
    trained_size: float
    flops: float
    positions: float
    predicted: float = 0.0


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


def splits(topology: Topology, stage: Stage, least: int = 1) -> Iterator[tuple[MeshConfig, int]]:
    """Every mesh of powers of two on the pod with every number of microbatches, a power of two times `least`,
    into which the batch divides."""
    inside = topology.devices // topology.slices
    for tensor in powers(min(8, inside)):
        for fsdp in powers(inside // tensor):
            if inside % (tensor * fsdp):
                continue
            mesh = MeshConfig(topology.slices, inside // (tensor * fsdp), fsdp, tensor)
            for accumulate in microbatches(stage, mesh, least):
                yield mesh, accumulate


def microbatches(stage: Stage, mesh: MeshConfig, least: int = 1) -> list[int]:
    """Into how many microbatches, `least` or twice, four times that and so on, a mesh can cut the stage's batch."""
    ways = mesh.replica * mesh.data * mesh.fsdp
    counts = [least << i for i in range(stage.batch_size.bit_length())]
    return [
        count
        for count in counts
        if stage.batch_size % (ways * count) == 0
        and stage.row_groups % (ways * count) == 0
        and (stage.objective.accumulates or count == least)
    ]


def rank(topology: Topology, work: Work, divides: Callable[[MeshConfig], bool]) -> list[Candidate]:
    """Candidates that should fit, fastest first; where none should, those nearest to it.

    divides: whether the table of shardings takes a mesh. Raises UserError where it takes none.
    """
    found = estimates(topology, work, divides)
    fitting = [c for c in found if fits(topology, c)]
    return sorted(fitting, key=speed) if fitting else sorted(found, key=lambda c: c.memory)


def estimates(
    topology: Topology, work: Work, divides: Callable[[MeshConfig], bool], least: int = 1
) -> list[Candidate]:
    """The model of every split, of at least so many microbatches. Raises UserError where there is none."""
    taken = functools.cache(divides)
    found = [
        estimate(topology, work, mesh, accumulate)
        for mesh, accumulate in splits(topology, work.stage, least)
        if taken(mesh)
    ]
    if not found:
        raise UserError(
            f"no mesh of powers of two divides {topology.name}, the batch of {work.stage.batch_size} and the "
            "parameters; choose another batch_size or pod"
        )
    return found


def fits(topology: Topology, candidate: Candidate) -> bool:
    """Whether a candidate should fit on the pod's chips."""
    return candidate.memory <= ROOM * topology.chip.hbm_bytes / topology.chip.cores


def speed(candidate: Candidate) -> tuple[float, int, float]:
    """What candidates are sorted by: of those equally fast to two digits (the model knows no more) that with fewer
    microbatches, then with less memory."""
    return float(f"{candidate.seconds:.1e}"), candidate.accumulate, candidate.memory


def estimate(topology: Topology, work: Work, mesh: MeshConfig, accumulate: int) -> Candidate:
    """The model of one step on one mesh."""
    chip, cores, stage = topology.chip, topology.chip.cores, work.stage
    devices = topology.chips * cores
    sharded = mesh.fsdp * mesh.tensor
    frozen = work.frozen_bytes
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
        # Summed within the slice first, so that each chip sends its part of the sum.
        seconds += (
            2 * trained / sharded / mesh.data * share(mesh.replica) * accumulate / (chip.dcn_gbps * 1e9)
        )
    return Candidate(mesh, accumulate, memory, arithmetic, seconds)


def sample_bytes(work: Work) -> float:
    """Bytes of activations per sample (estimated): what enters the UNet's blocks, or with remat "none" some twenty
    arrays per block, and what is alive at its widest, fitted to the plans in tpu/plans; without a UNet what a
    decoder that is learnt through, or an autoencoder that trains, keeps (not fitted to anything)."""
    model, stage = work.model, work.stage
    width = 2 if stage.dtype == "bfloat16" else 4
    if model.unet is not None and "unet" in work.components:
        return _unet_bytes(model.unet, stage.remat, width)
    total = 50e6
    if model.decoder is not None and _walks(work) > 1:
        c = model.decoder
        layers = c.num_layers * {"none": 34, "products": 14, "blocks": 1}[stage.remat] + 34
        total += work.positions * layers * c.width * width + 3 * work.predicted * c.vocab_size * 4
    if model.vae is not None and "vae" in work.trained:
        total += 40 * stage.data.image_size**2 * model.vae.block_out_channels[0] * width
    return total


def drawing_bytes(model: ModelConfig, dtype: str) -> float:
    """Bytes that drawing a picture takes beside the weights (estimated): what is alive where the UNet is widest."""
    width, c = jnp.dtype(dtype).itemsize, model.unet
    assert c is not None
    return float(max(130 * (c.sample_size >> i) ** 2 * n * width for i, n in enumerate(c.block_out_channels)))


def _unet_bytes(c: UNetConfig, remat: Remat, width: int) -> float:
    total = widest = 0.0
    for level, channels in enumerate(c.block_out_channels):
        size = (c.sample_size >> level) ** 2 * channels * width
        blocks = (2 * c.layers_per_block + 1) * (2 if c.attention[level] else 1)
        total += blocks * size * {"none": 20, "products": 8, "blocks": 1}[remat]
        widest = max(widest, 130 * size)
    return total + widest


def _walks(work: Work) -> int:
    """How often a step needs the decoder's weights: again in a backward pass, where what trains stands before it
    or in it."""
    return 1 + bool(work.trained - {"unet", "unet_fast", "vae"})


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


def powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def describe(candidates: list[Candidate], shown: int = 10) -> list[dict[str, Any]]:
    """The first candidates as plain values, for a table or JSON."""
    return [
        {
            "mesh": str(c.mesh),
            "microbatches": c.accumulate,
            "memory_gib": round(c.memory / 2**30, 2),
            "arithmetic_ms": round(1e3 * c.arithmetic, 1),
            "interconnect_ms": round(1e3 * c.interconnect, 1),
            "kind": "estimated",
        }
        for c in candidates[:shown]
    ]
