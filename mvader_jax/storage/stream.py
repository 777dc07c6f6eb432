"""Components written one slice at a time, as checkpoints that `mvader_jax.storage.checkpoint` reads.

Orbax writes the metadata; the arrays go straight into the uncompressed zarr files that it reads, in
chunks along their first axes, so that no component is ever whole in memory and every host of a mesh can
read its own part.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict

from mvader_jax.storage.checkpoint import forget_place
from mvader_jax.storage.quiet import quiet
from mvader_jax.storage.reader import Leaf, bytes_of

#: A chunk's size: small enough that hosts of a pod read little more than their shards.
_CHUNK_BYTES = 32 << 20
#: Bytes that may wait between reading and writing.
_AHEAD_BYTES = 256 << 20
Advance = Callable[[int], None]


def write_component(
    directory: Path, leaves: Sequence[Leaf], advance: Advance | None = None
) -> dict[str, Any]:
    """Writes a component and returns its record: parameters, dtypes and SHA-256, as `bundle.summary` has them.

    leaves: sorted by path. advance: called with the bytes of every slice that was written.
    """
    assert [leaf.path for leaf in leaves] == sorted(leaf.path for leaf in leaves)
    handler = _SliceHandler(leaves, advance)
    registry = ocp.type_handlers.create_type_handler_registry((Leaf, handler))
    tree = unflatten_dict({tuple(leaf.path.split("/")): leaf for leaf in leaves})
    with (
        quiet(),
        ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        ) as checkpointer,
    ):
        checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(tree))
    forget_place(directory)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "dtypes": sorted({str(leaf.dtype) for leaf in leaves}),
        "sha256": handler.digest.hexdigest(),
    }


class _SliceHandler(ocp.type_handlers.TypeHandler):
    """How orbax writes a `Leaf`: a zarr array like any other, filled slice by slice."""

    def __init__(self, leaves: Sequence[Leaf], advance: Advance | None) -> None:
        self.leaves = {".".join(leaf.path.split("/")): leaf for leaf in leaves}
        self.advance = advance or (lambda _: None)
        self.digest = hashlib.sha256()

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Any) -> Any:
        raise NotImplementedError("leaves being written cannot be asked for metadata")

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        raise NotImplementedError("leaves being written cannot be read")

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        for info in infos:
            await info.await_path_creation()
        places = {info.name: Path(info.parent_dir) / info.name for info in infos}
        arrays = {name: _create(places[name], leaf) for name, leaf in self.leaves.items()}
        pending: list[tuple[Any, int]] = []

        def settle(limit: int) -> None:
            while pending and sum(nbytes for _, nbytes in pending) > limit:
                future, nbytes = pending.pop(0)
                future.result()
                self.advance(nbytes)

        for name, index, array in _ahead(self.leaves):
            leaf = self.leaves[name]
            if not index:
                self.digest.update(f"{leaf.path}:{leaf.dtype}:{leaf.shape}".encode())
            settle(max(_AHEAD_BYTES - array.nbytes, 0))
            place = arrays[name][index] if leaf.stacked else arrays[name]
            pending.append((place.write(array, can_reference_source_data_indefinitely=True), array.nbytes))
            self.digest.update(bytes_of(array))
        settle(0)
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        done.set_result(None)
        return [done]


def _create(place: Path, leaf: Leaf) -> ts.TensorStore:
    row = leaf.shape[1:] if leaf.stacked else leaf.shape
    chunks = list(row)
    if chunks:
        per_index = int(np.prod(chunks[1:], dtype=np.int64)) * leaf.dtype.itemsize
        chunks[0] = min(chunks[0], max(1, _CHUNK_BYTES // max(per_index, 1)))
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(place)},
        "metadata": {
            "shape": list(leaf.shape),
            "chunks": [1, *chunks] if leaf.stacked else chunks,
            "dtype": "bfloat16" if leaf.dtype.name == "bfloat16" else leaf.dtype.str,
            "compressor": None,
        },
        # A plain copy does not wait for the disk after every file either.
        "context": {"file_io_sync": False},
        # Weights hold zeros: without this, a chunk of zeros would be left out and its bytes not hashed alike.
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, delete_existing=False).result()


def _ahead(leaves: dict[str, Leaf]) -> Iterator[tuple[str, int, np.ndarray]]:
    """(name, slice's index, slice) of every leaf in order; a second thread reads and lays out ahead."""
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = _Room(_AHEAD_BYTES)

    def produce() -> None:
        try:
            for name, leaf in leaves.items():
                rows = leaf.shape[0] if leaf.stacked else 1
                expected = leaf.shape[1:] if leaf.stacked else leaf.shape
                slices = leaf.slices()
                for index in range(rows):
                    if not room.take(leaf.nbytes // rows):
                        return
                    array = next(slices)
                    assert (array.shape, array.dtype) == (expected, leaf.dtype), f"{name}: {array.shape}"
                    ready.put((name, index, array))
                    del array
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    reader = threading.Thread(target=produce, daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            room.give(item[2].nbytes)
            del item
    finally:
        room.close()
        reader.join()


class _Room:
    """Bytes that may be under way between two threads; something larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.closed = limit, 0, False
        self.changed = threading.Condition()

    def take(self, nbytes: int) -> bool:
        """Waits for room. False: nobody wants it any more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or not self.used or self.used + nbytes <= self.limit)
            self.used += nbytes
            return not self.closed

    def give(self, nbytes: int) -> None:
        with self.changed:
            self.used -= nbytes
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
