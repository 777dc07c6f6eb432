"""The only mesh: axes (replica, data, fsdp, tensor), and how processes feed it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mvader_jax.bounds import LARGEST_INT, Bound
from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import initialize_distributed
from mvader_jax.parallel.sharding import MESH_AXES, Tree, batch_sharding, mesh_axes
from mvader_jax.settings import Checked

#: Devices along one axis of a mesh.
_AXIS = Bound(lambda x: x == -1 or 1 <= x <= LARGEST_INT, "a positive number, or -1 for what is left")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """Devices along each axis; one of them may be -1: what the others leave.

    replica: slices joined by the data-centre network; data: whole copies of the parameters; fsdp:
    parameters are sharded, batch too; tensor: heads and MLP are sharded.
    """

    replica: Annotated[int, _AXIS] = 1
    data: Annotated[int, _AXIS] = 1
    fsdp: Annotated[int, _AXIS] = 1
    tensor: Annotated[int, _AXIS] = 1

    def __str__(self) -> str:
        """As `parse_mesh` reads it."""
        axes = (f"{axis}={getattr(self, axis)}" for axis in MESH_AXES if getattr(self, axis) != 1)
        return ",".join(axes) or "data=1"

    def resolve(self, devices: int) -> MeshConfig:
        """The -1 replaced. Raises UserError where the axes do not make up the number of devices."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        known = math.prod(size for size in sizes.values() if size != -1)
        text = str(self)
        if len(free) > 1:
            raise UserError(f"the mesh {text} leaves {' and '.join(free)} open; only one axis may be -1")
        if free:
            if devices % known:
                raise UserError(f"the mesh {text} does not divide the {devices} devices there are")
            sizes[free[0]] = devices // known
        elif known != devices:
            raise UserError(f"the mesh {text} has {known} devices, but there are {devices}")
        return MeshConfig(**sizes)


def parse_mesh(text: str) -> MeshConfig:
    """'data=4,fsdp=2' -> MeshConfig; axes that are not named are 1.

    Raises UserError for an unknown axis, one named twice, or a size that is no positive number or -1.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        axis, equals, number = part.partition("=")
        if axis not in MESH_AXES or not equals:
            raise UserError(
                f"unknown mesh axis in {part!r}; accepted: {', '.join(a + '=N' for a in MESH_AXES)}"
            )
        if axis in sizes:
            raise UserError(f"the mesh {text!r} names {axis} twice")
        try:
            sizes[axis] = int(number)
        except ValueError:
            raise UserError(f"{part!r} in the mesh: the size must be {_AXIS.accepted}") from None
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh on these devices (default: all). Slices of TPUs lie along `replica`.

    Raises UserError where the devices' number does not fit, or their slices do not divide `replica`.
    """
    chosen = jax.devices() if devices is None else list(devices)
    config = config.resolve(len(chosen))
    shape = tuple(getattr(config, axis) for axis in MESH_AXES)
    slices = 1
    if chosen[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in chosen})
    if config.replica % slices:
        raise UserError(f"the devices are {slices} slices; name replica={slices} (or a multiple) in the mesh")
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (config.replica // slices, *shape[1:]), (slices, 1, 1, 1), chosen, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA's settings for a training step on this mesh; none off TPUs.

    On some meshes (fsdp=16 of a v4-32) XLA would turn a product with gathered weights into a loop that adds to
    the whole product once a device: a step's traffic to memory doubles (`mvader plan`). So it does the other way round with
    a weight's gradient, in pieces too narrow for a matrix unit (`tests/bench/flags.py`).
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {
        f"xla_tpu_enable_windowed_einsum_for_{name}": "false" for name in ("all_gather", "reduce_scatter")
    }


def open_mesh(text: str) -> Mesh | None:
    """The mesh of a command's `--mesh`, over every process of the job; None where the text is empty.

    A CPU is cut into as many devices as a mesh of known size names: two of a core each draw and train faster
    than one of two. Raises UserError as `parse_mesh` and `make_mesh` do.
    """
    if not text:
        return None
    config = parse_mesh(text)
    initialize_distributed()
    size = math.prod(getattr(config, axis) for axis in MESH_AXES)
    told = "xla_force_host" in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] > 0
    if size > 1 and not told and not jax.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # the devices are made already: make_mesh says if they fit
            jax.config.update("jax_num_cpu_devices", size)
    return make_mesh(config)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process makes the index-th of `count` equal runs of a batch's rows.

    Processes that hold the same rows (a tensor axis that spans hosts) make the same ones. Raises UserError
    where the rows of two processes overlap in part.
    """
    axes = tuple(mesh.axis_names.index(axis) for axis in mesh_axes("batch"))
    held: dict[int, set[tuple[int, ...]]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        held.setdefault(device.process_index, set()).add(tuple(place[axis] for axis in axes))
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({row for share in shares for row in share}) != sum(len(share) for share in shares):
        raise UserError(
            f"on this mesh ({dict(mesh.shape)}) the batch rows of two processes overlap in part; let each "
            "process hold whole rows: make the tensor axis divide, or be a multiple of, its devices"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def make_global(batch: Tree, mesh: Mesh) -> Tree:
    """A tree of host arrays, this process's rows of a batch, as global arrays sharded by row."""
    count = process_share(mesh)[1]

    def one(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        shape = (x.shape[0] * count, *x.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, x.ndim), x, shape)

    return jax.tree.map(one, batch)
