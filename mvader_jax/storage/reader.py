"""Components read with tensorstore alone, whole or a slice at a time, whoever wrote them.

Orbax, which also restores onto a mesh (`checkpoint.py`), takes longer to be imported and to read a small model than all
else that drawing waits for: nothing here imports it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax.traverse_util import flatten_dict, unflatten_dict

from mvader_jax.errors import UserError
from mvader_jax.parallel.sharding import Tree

#: Bytes that may be under way from the files while a tree is read; the largest array, if that is more.
_UNDER_WAY_BYTES = 256 << 20


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


def read_tree(directory: Path, abstract: Tree, dtype: Any = None) -> Tree | None:
    """A component as NumPy arrays, floating ones cast to `dtype` where it is given.

    abstract: what its names and shapes must be. None where it has others or is not whole: orbax then says what is wrong.
    """
    try:
        reader = ComponentReader(directory)
        expected = {path: tuple(leaf.shape) for path, leaf in flatten_dict(abstract, sep="/").items()}
        if {path: reader.shape(path) for path in reader.paths} != expected:
            return None
        return unflatten_dict(reader.arrays(dtype), sep="/")
    except (UserError, ValueError, OSError):
        return None


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
        context = ts.Context()
        opening = {"/".join(keys): self._open(".".join(keys), context) for keys in sorted(names)}
        self._arrays = {path: self._opened(path, future) for path, future in opening.items()}

    def _open(self, name: str, context: ts.Context) -> Any:
        base = str(self.directory.absolute())
        store: dict[str, Any] = {"driver": "file", "path": f"{base}/{name}"}
        if self._ocdbt:
            store = {"driver": "ocdbt", "base": f"file://{base}", "path": name}
        # A chunk that is missing is damage, and not zeros: whoever writes bundles stores zeros too.
        spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
        return ts.open(spec, open=True, read=True, context=context)

    def _opened(self, path: str, future: Any) -> ts.TensorStore:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            name = ".".join(path.split("/"))
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

    def arrays(self, dtype: Any = None) -> dict[str, np.ndarray]:
        """{path: array}, floating ones as `dtype` where it is given; several are read at a time."""
        found: dict[str, np.ndarray] = {}
        under_way: deque[tuple[str, Any, int]] = deque()
        waiting = 0

        def settle() -> int:
            path, future, nbytes = under_way.popleft()
            found[path] = np.asarray(future.result())
            return nbytes

        for path, array in self._arrays.items():
            stored = self.dtype(path)
            floating = dtype is not None and jnp.issubdtype(stored, jnp.floating)
            kind = jnp.dtype(dtype) if floating else stored
            read = (array if kind == stored else ts.cast(array, kind.name)).read()
            under_way.append((path, read, array.size * max(kind.itemsize, stored.itemsize)))
            waiting += under_way[-1][2]
            while waiting > _UNDER_WAY_BYTES and len(under_way) > 1:
                waiting -= settle()
        while under_way:
            settle()
        return found

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
