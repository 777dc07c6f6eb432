"""Components written and read one slice at a time, as checkpoints that `mvader_jax.checkpoint` reads.

Orbax writes the metadata; the arrays go straight into the uncompressed zarr files that it reads, in
chunks along their first axes, so that no component is ever whole in memory and every host of a mesh can
read its own part.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict

from mvader_jax.errors import UserError
from mvader_jax.parallel.sharding import Tree
from mvader_jax.storage.checkpoint import forget_place
from mvader_jax.storage.quiet import quiet

#: A chunk's size: small enough that hosts of a pod read little more than their shards.
_CHUNK_BYTES = 32 << 20
#: Bytes that may wait between reading and writing.
_AHEAD_BYTES = 256 << 20
Advance = Callable[[int], None]


def bytes_of(array: np.ndarray) -> memoryview:
    """An array's bytes in C order; a view where it is contiguous. (bfloat16 itself is no buffer format.)"""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf to be written: its slices come in order from `slices()`, whole where it is not stacked."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    slices: Callable[[], Iterator[np.ndarray]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


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


class ComponentReader:
    """A component of a bundle on disk, whoever wrote it, read a slice at a time."""

    def __init__(self, directory: Path) -> None:
        """Raises UserError where there is no whole checkpoint."""
        self.directory = directory
        try:
            metadata = json.loads((directory / "_METADATA").read_text(encoding="utf-8"))
            names = [
                [str(key["key"]) for key in entry["key_metadata"]]
                for entry in metadata["tree_metadata"].values()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            what = "is not a whole checkpoint" if directory.is_dir() else "is missing"
            raise UserError(f"{directory} {what}") from None
        self._ocdbt = bool(metadata.get("use_ocdbt"))
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._held: tuple[str, np.ndarray] | None = None
        self._arrays = {"/".join(keys): self._open(".".join(keys)) for keys in sorted(names)}

    def _open(self, name: str) -> ts.TensorStore:
        base = str(self.directory.absolute())
        store: dict[str, Any] = {"driver": "file", "path": f"{base}/{name}"}
        if self._ocdbt:
            store = {"driver": "ocdbt", "base": f"file://{base}", "path": name}
        try:
            # A chunk that is missing is damage, and not zeros: whoever writes bundles stores zeros too.
            spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
            return ts.open(spec, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise UserError(f"{self.directory} lacks {name}: {str(error).splitlines()[0][:200]}") from None

    @property
    def plain(self) -> bool:
        """Whether every chunk is a file of its own, uncompressed, as `write_component` writes them."""
        return not self._ocdbt and all(self._chunk_files(path) is not None for path in self.paths)

    @property
    def nbytes(self) -> int:
        return sum(array.size * array.dtype.numpy_dtype.itemsize for array in self._arrays.values())

    def check_files(self) -> None:
        """Raises UserError where a chunk's file is missing or not of its size; only of `plain` components."""
        for path in self.paths:
            for file, nbytes in self._chunk_files(path) or ():
                if not file.is_file() or file.stat().st_size != nbytes:
                    what = "cut" if file.is_file() else "missing"
                    raise UserError(
                        f"{self.directory}: {path} cannot be read: its file {file.name} is {what}"
                    )

    def _chunk_files(self, path: str) -> list[tuple[Path, int]] | None:
        """(file, its size) of every chunk of a leaf; None where they are stored otherwise."""
        array, folder = self._arrays[path], self.directory / ".".join(path.split("/"))
        metadata = array.spec().to_json().get("metadata", {})
        if self._ocdbt or self._driver != "zarr" or metadata.get("compressor") is not None:
            return None
        chunk = self._chunk(path)
        nbytes = int(np.prod(chunk, dtype=np.int64)) * self.dtype(path).itemsize
        counts = [-(-length // step) for length, step in zip(self.shape(path), chunk, strict=True)]
        names = [".".join(map(str, index)) for index in np.ndindex(*counts)] if counts else ["0"]
        return [(folder / name, nbytes) for name in names]

    def _chunk(self, path: str) -> tuple[int, ...]:
        return tuple(length or 1 for length in self._arrays[path].chunk_layout.read_chunk.shape or ())

    @property
    def paths(self) -> list[str]:
        return sorted(self._arrays)

    def shape(self, path: str) -> tuple[int, ...]:
        return tuple(self._arrays[path].shape)

    def dtype(self, path: str) -> np.dtype:
        return np.dtype(self._arrays[path].dtype.numpy_dtype)

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """A leaf, or its row `layer` where it is stacked. Raises UserError where its file is damaged."""
        array = self._arrays[path]
        if layer is not None:
            if self._held is not None and self._held[0] == path:
                return self._held[1][layer]
            self._held = None
            # A chunk comes whole: where it spans layers, they are kept for those that follow.
            if self._chunk(path)[0] > 1:
                self._held = (path, self.read(path))
                return self._held[1][layer]
            array = array[layer]
        try:
            return np.asarray(array.read().result())
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.directory}: {path} cannot be read: {str(error).splitlines()[0][:200]}"
            ) from None

    def sha256(self) -> str:
        """The hash that a record has of what is stored, read a slice at a time. Raises UserError as `read`."""
        digest = hashlib.sha256()
        for path in self.paths:
            shape, dtype = self.shape(path), self.dtype(path)
            digest.update(f"{path}:{dtype}:{shape}".encode())
            sliced = len(shape) > 2 and self._chunk(path)[0] == 1
            for layer in range(shape[0]) if sliced else (None,):
                digest.update(bytes_of(self.read(path, layer)))
        return digest.hexdigest()

    def tree(self) -> Tree:
        """The shapes, as a tree."""
        return unflatten_dict({tuple(path.split("/")): _Shaped(self.shape(path)) for path in self.paths})

    def leaf(self, path: str) -> Leaf:
        """A leaf as it would be written again, unchanged."""
        return Leaf(path, self.shape(path), self.dtype(path), False, lambda: iter([self.read(path)]))


@dataclasses.dataclass(frozen=True)
class _Shaped:
    shape: tuple[int, ...]
