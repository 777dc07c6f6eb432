"""The mesh of a job for which nobody has named one: the fastest that fits, by the search's model of a step.

It is chosen from shapes alone, nothing is compiled. Plans and training choose by the same rule, so that what was
planned is what runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from mvader_jax.condition import PromptBatch
from mvader_jax.data.sources.encoded import EncodedShapes, parts_of
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh, process_share
from mvader_jax.parallel.pods import Topology, found_topology
from mvader_jax.parallel.processes import by_first, initialize_distributed
from mvader_jax.parallel.sharding import MESH_AXES, ShardingError, Tree, bytes_per_device, param_shardings
from mvader_jax.plan import search
from mvader_jax.plan.counted import kept_flops
from mvader_jax.plan.program import drawing_components
from mvader_jax.plan.search import Candidate, Work, powers
from mvader_jax.storage.checkpoint import newest_metadata
from mvader_jax.train.assemble import batch_shape, split
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.start import earlier_components


@dataclasses.dataclass(frozen=True)
class Choice:
    """mesh, accumulate: what was chosen; why: in a sentence."""

    mesh: MeshConfig
    accumulate: int
    why: str


def rank(
    topology: Topology, config: TrainConfig, stage: Stage, precomputed: Collection[str], flops: float
) -> list[Candidate]:
    """Meshes and microbatches for a step of `flops`, as `search.rank`. Raises UserError where none divides."""
    work, divides = describe(config, stage, precomputed)
    return search.rank(topology, dataclasses.replace(work, flops=flops), divides)


def choose(
    topology: Topology,
    config: TrainConfig,
    stage: Stage,
    precomputed: Collection[str] = (),
    *,
    flops: Callable[[], float],
    more: bool = True,
    keep: MeshConfig | None = None,
    usable: Callable[[MeshConfig], bool] = lambda mesh: True,
) -> Choice:
    """The fastest mesh that fits with the stage's own microbatches; where none does, with the fewest that do.

    flops: of a step with what remat repeats; asked only where there is a choice. more: whether there may be more
    microbatches than the stage's. keep: the mesh to keep if it divides
    the work. usable: whether the job's processes can share a mesh. Where nothing fits, the mesh that needs least.
    Raises UserError where no mesh divides the batch and the parameters.
    """
    work, divides = describe(config, stage, precomputed)
    found = search.estimates(topology, work, divides, least=stage.accumulate)
    found = [c for c in found if more or c.accumulate == stage.accumulate]
    kept = [c for c in found if c.mesh == keep]
    found = sorted(kept or found, key=lambda c: c.memory)
    fitting = [c for c in found if search.fits(topology, c)]
    fewest = min((c.accumulate for c in fitting), default=0)
    same = [c for c in fitting if c.accumulate == fewest] or found[:1]
    # Compiled, `tensor` came out slower than the model says.
    same = [c for c in same if c.mesh.tensor == 1] or same
    if len(same) > 1:
        work = dataclasses.replace(work, flops=flops())
        same = sorted((search.estimate(topology, work, c.mesh, c.accumulate) for c in same), key=search.speed)
    best = next((c for c in same if usable(c.mesh)), same[0])
    among = f"the fastest of {len(same)} that fit" if len(same) > 1 else "the only one that fits"
    among = "the run's own so far, on" if kept else among
    return Choice(
        best.mesh, best.accumulate, _reason(topology, best, among if fitting else None, stage.accumulate)
    )


def choose_sampling(
    topology: Topology, model: ModelConfig, images: int, dtype: str, frozen_dtype: str | None = None
) -> tuple[MeshConfig, str]:
    """(the mesh that divides the weights over the fewest devices that hold them, why in a sentence).

    Raises UserError where the images do not divide over the devices.
    """
    if images % topology.devices:
        raise UserError(
            f"{images} images do not divide over the {topology.devices} devices of {topology.name}"
        )
    shapes, axes = drawing_components(model, dtype, frozen_dtype)
    inside = topology.devices // topology.slices
    meshes = [MeshConfig(topology.slices, inside // n, n) for n in powers(inside) if inside % n == 0]
    found = []
    for mesh in meshes:
        with contextlib.suppress(ShardingError):
            placed = jax.tree.map(
                lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                shapes,
                param_shardings(shapes, axes, _abstract(mesh)),
            )
            memory = bytes_per_device(placed) + search.drawing_bytes(model, dtype) * images / topology.devices
            found.append(Candidate(mesh, 1, memory, 0.0, 0.0))
    fitting = [c for c in found if search.fits(topology, c)]
    best = (fitting or found[-1:])[0]
    return best.mesh, _reason(topology, best, "the fewest ways that fit" if fitting else None)


def describe(
    config: TrainConfig, stage: Stage, precomputed: Collection[str]
) -> tuple[Work, Callable[[MeshConfig], bool]]:
    """(what a step has to do, its FLOPs left open; whether the table of shardings takes a mesh)."""
    objective = stage.objective
    model = objective.extended(config.model)
    needed = objective.components(model, precomputed, drawn=stage.sample_every > 0)
    shapes, axes = abstract_components(model, needed)
    trained, frozen, _ = split(shapes, stage)

    def divides(mesh: MeshConfig) -> bool:
        try:
            param_shardings(shapes, axes, _abstract(mesh))
        except ShardingError:
            return False
        return True

    batch = objective.abstract_batch(*batch_shape(model, stage), model.tokenizer, EncodedShapes())
    prompts = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, PromptBatch))
    tokens = sum(p.token_ids.size for p in prompts if isinstance(p, PromptBatch))
    work = Work(
        model=model,
        stage=stage,
        components=frozenset(needed),
        trained=frozenset(trained),
        frozen_bytes=bytes_per_device(frozen),
        trained_size=_size(trained),
        flops=0.0,
        positions=tokens / stage.batch_size,
        predicted=getattr(batch.get("labels"), "size", 0) / stage.batch_size,
    )
    return work, divides


def training_mesh(config: TrainConfig, stage_name: str, workdir: str | Path) -> tuple[Mesh, TrainConfig, str]:
    """(mesh of a stage's run over all devices, the config with the microbatches it takes, why in a sentence). Together.

    A run that is gone on with keeps its mesh where it has as many devices as then. On other devices than TPUs,
    whose memory and links are not known, all lie along `data`, and there is nothing to say.
    Raises UserError where no mesh divides the batch and the parameters.
    """
    initialize_distributed()
    stage, devices = config.stage(stage_name), jax.devices()
    checkpoints = Path(workdir) / stage_name / "checkpoints"
    before = _before(by_first(lambda: newest_metadata(checkpoints).get("mesh")), len(devices))
    topology = found_topology(devices)
    if topology is None or topology.devices != len(devices):
        usual = MeshConfig(data=len(devices))
        same = before in (None, usual)
        return make_mesh(before or usual), config, "" if same else f"mesh {before}: the run's own so far"

    def first() -> list[Any]:
        model, *_ = earlier_components(config, stage, workdir)
        whole, known = dataclasses.replace(config, model=model), parts_of(stage.data)
        flops = functools.partial(kept_flops, whole, stage, known, remat=True)
        found = choose(topology, whole, stage, known, flops=flops, keep=before, usable=_shared)
        return [dataclasses.asdict(found.mesh), found.accumulate, found.why]

    sizes, accumulate, why = by_first(first)
    stages = {**config.stages, stage_name: dataclasses.replace(stage, accumulate=accumulate)}
    return make_mesh(MeshConfig(**sizes)), dataclasses.replace(config, stages=stages), why


def _before(axes: Mapping[str, int] | None, devices: int) -> MeshConfig | None:
    """The mesh that a run's newest step was made on, if it had as many devices."""
    if axes is None or axes.keys() != set(MESH_AXES) or math.prod(axes.values()) != devices:
        return None
    return MeshConfig(**axes)


def _shared(mesh: MeshConfig) -> bool:
    try:
        process_share(make_mesh(mesh))
    except UserError:
        return False
    return True


def _reason(topology: Topology, best: Candidate, among: str | None, before: int = 1) -> str:
    """among: what the choice is; None where nothing fits. before: microbatches that were asked for."""
    chip = topology.chip
    pod = f"{topology.slices} x {topology.name}" if topology.slices > 1 else topology.name
    memory = f"{best.memory * chip.cores / 2**30:.1f} of {chip.hbm_gib:g} GiB per chip, estimated"
    chosen = f"mesh {best.mesh}"
    if best.accumulate != before:
        chosen += f" and {best.accumulate} microbatches in place of {before}"
    if among is None:
        return f"{chosen}: nothing is estimated to fit {pod}, this comes nearest ({memory})"
    return f"{chosen}: {among} {pod} ({memory})"


def _abstract(mesh: MeshConfig) -> AbstractMesh:
    return AbstractMesh(tuple(getattr(mesh, axis) for axis in MESH_AXES), MESH_AXES)


def _size(tree: Tree) -> float:
    return float(sum(leaf.size for leaf in jax.tree.leaves(tree)))
