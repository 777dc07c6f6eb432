"""Where a pipeline computes: one device, or a mesh that divides a batch's rows."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mvader_jax.parallel.sharding import batch_sharding, replicated
from mvader_jax.sampling.generate import Draws, Prompted

T = TypeVar("T")


class Placement:
    """mesh: the devices that the components are sharded over; None is the default device alone."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh

    @property
    def shards(self) -> int:
        """The number of devices that a batch of pictures is divided over."""
        if self.mesh is None:
            return 1
        sharding = batch_sharding(self.mesh)
        axes = sharding.spec[0] or () if sharding.spec else ()
        names = (axes,) if isinstance(axes, str) else axes
        return int(np.prod([self.mesh.shape[name] for name in names], dtype=np.int64))

    def rounded(self, count: int) -> int:
        """How many rows `count` pictures of one call are drawn in: few sizes, so that few programs are compiled.

        A device has 1, 2, 4, or a multiple of 8.
        """
        rows = -(-count // self.shards)
        return self.shards * (1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which programs run."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def whole(self) -> dict[str, Any]:
        """`jax.jit`'s option for a small result that every process reads whole."""
        return {} if self.mesh is None else {"out_shardings": replicated(self.mesh)}

    def by_row(self, *dims: int) -> dict[str, Any]:
        """`jax.jit`'s option for results of so many dimensions that stay where their rows are computed."""
        if self.mesh is None:
            return {}
        return {"out_shardings": tuple(batch_sharding(self.mesh, count) for count in dims)}

    def placed(self, tree: T) -> T:
        """Host arrays that every process holds whole, on the mesh: by row where the rows divide."""
        if self.mesh is None:
            return tree
        mesh, shards = self.mesh, self.shards

        def one(x: Any) -> jax.Array:
            host = np.asarray(x)
            divides = host.ndim > 0 and host.shape[0] % shards == 0
            sharding: NamedSharding = batch_sharding(mesh, host.ndim) if divides else replicated(mesh)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(one, tree)

    def filled(self, draws: Draws) -> Draws:
        """`draws` as their program takes them: every array by row, the last row repeated until they divide."""
        count = len(draws.seeds)
        missing = -count % self.shards

        def repeated(tree: Any) -> Any:
            return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), tree)

        def rows(kind: Prompted) -> Prompted:
            own = np.arange(count, dtype=np.int32)
            default = own if kind.count == count else np.zeros(count, np.int32)
            chosen = np.asarray(default if kind.rows is None else kind.rows, np.int32)
            # Where every picture has a prompt of its own nothing needs gathering.
            if not missing and kind.count == count and np.array_equal(chosen, own):
                return Prompted(kind.prompts)
            return Prompted(kind.prompts, repeated(chosen))

        return Draws(
            rows(draws.prompt),
            rows(draws.base),
            repeated(draws.seeds),
            repeated(draws.indices),
            repeated(draws.guidance_scale),
            None if draws.negative is None else rows(draws.negative),
            repeated(draws.negative_strength),
            repeated(draws.init),
            draws.start,
        )
