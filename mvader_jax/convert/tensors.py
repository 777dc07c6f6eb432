"""What every reader of weights returns: the names, shapes and dtypes of a file, and how to read each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from mvader_jax.errors import UserError

#: Element types by the names that safetensors gives them.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file, unread. storage: equal for two tensors that are the same bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    storage: Hashable = dataclasses.field(repr=False)
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


@dataclasses.dataclass(frozen=True)
class Weights:
    """tensors: by name; files: where they lie; others: entries of the file that are no tensors."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    others: tuple[str, ...] = ()


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of this type are floating (bfloat16 included)."""
    return dtype in (DTYPES["F64"], DTYPES["F32"], DTYPES["F16"], DTYPES["BF16"])


def read_at(file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`shape` numbers from a place in a file. Raises UserError where the file ends before them."""
    result = np.empty(shape, dtype)
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        view = bytes_of(result)
        while view:
            count = stream.readinto(view)
            if not count:
                raise UserError(f"{file} is truncated: it ends inside a tensor")
            view = view[count:]
    return result


def bytes_of(array: np.ndarray) -> memoryview:
    """An array's bytes in C order; a view where it is contiguous. (bfloat16 itself is no buffer format.)"""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def refuse_pointer(file: Path) -> None:
    """Raises UserError for what stands in for weights where Git LFS was not run, and for unreadable files."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a Git LFS pointer, not weights; fetch the real file (git lfs pull)")
    if not start:
        raise UserError(f"{file} is empty")
