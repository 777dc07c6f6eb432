"""What every reader of weights returns: the names, shapes and dtypes of a file, and how to read each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.storage.reader import bytes_of

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
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
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
    """tensors: by name; files: where they lie; others: entries of the file that are no tensors; metadata: words that
    safetensors keeps beside them."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    others: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of this type are floating (bfloat16 included)."""
    return dtype in (DTYPES["F64"], DTYPES["F32"], DTYPES["F16"], DTYPES["BF16"])


def finite(array: np.ndarray) -> bool:
    """Whether a floating array holds neither NaN nor infinity, by its exponent bits: for half types that
    is several times faster than NumPy's own test."""
    bits, mask, limit = {
        DTYPES["F64"]: (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
        DTYPES["F32"]: (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
        DTYPES["F16"]: (np.uint16, 0x7FFF, 0x7C00),
        DTYPES["BF16"]: (np.uint16, 0x7FFF, 0x7F80),
    }[array.dtype]
    flat = np.ascontiguousarray(array).reshape(-1).view(bits)
    step = 1 << 16
    return all(int((flat[i : i + step] & bits(mask)).max()) < limit for i in range(0, flat.size, step))


def cast(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """`array.astype(dtype)` between floating types. Raises UserError where a number becomes infinite.

    what: the array's name for the message. NaN and infinities that are there already pass.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    if finite(result):
        return result
    # Where the narrower number is infinite and the wider is not.
    lost = ~np.isfinite(result.astype(np.float64)) & np.isfinite(array.astype(np.float64))
    if lost.any():
        value = float(array[lost].reshape(-1)[0])
        raise UserError(
            f"{what} holds {value:.6g}, which {dtype} cannot: its largest number is "
            f"{float(ml_dtypes.finfo(dtype).max):.6g}; choose another --dtype"
        )
    return result


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return plain(" ".join(str(error).split())[:200]) if str(error).strip() else type(error).__name__


def plain(name: str) -> str:
    """A name for a message: cut where it is long, quoted where it holds what no line can."""
    return shown(name) if len(name) > 200 or not name.isprintable() or not name else name


def refused_dtype(file: Path, name: str, dtype: str) -> UserError:
    """For a tensor of a type that is not read, by whichever name its format has for it."""
    low = dtype.lower()
    if low.startswith(("f8", "f6", "f4", "float8", "float4")):
        return UserError(
            f"{file}: {plain(name)} is {dtype}, a float of 8 bits or fewer; convert the original in float16"
        )
    if low.startswith(("c", "complex")):
        return UserError(f"{file}: {plain(name)} is {dtype}, complex numbers, which no model here has")
    return UserError(
        f"{file}: {plain(name)} is of the type {dtype[:40]}, which is not read; accepted: {', '.join(DTYPES)}"
    )


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
