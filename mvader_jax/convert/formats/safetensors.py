"""The safetensors format: a JSON header with every tensor's place, then the bytes (huggingface/safetensors)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from mvader_jax.convert.tensors import (
    DTYPES,
    Tensor,
    Weights,
    read_at,
    reason,
    refused_dtype,
    shown,
)
from mvader_jax.errors import UserError
from mvader_jax.storage.reader import bytes_of

#: The format's own limit.
_MAX_HEADER = 100 << 20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def open_safetensors(file: Path) -> Weights:
    """Raises UserError for a header that is wrong or does not fit the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise UserError(f"{file} is truncated: it has no safetensors header")
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER, size - 8):
            raise UserError(
                f"{file} has a wrong safetensors header: it claims {length} bytes of a file of {size}, so "
                "the file is truncated or of another format"
            )
        text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} has a wrong safetensors header: {reason(error)}") from None
    if not isinstance(header, dict):
        raise UserError(f"{file} has a wrong safetensors header: it is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(
            f"{file} has a wrong safetensors header: its metadata is {shown(metadata)}, not words"
        )
    tensors = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    end = 0
    for tensor, first, last in sorted(tensors.values(), key=lambda one: one[1:]):
        if first != end:
            raise UserError(
                f"{file} has a wrong safetensors header: {tensor.name!r} begins at {first}, not {end}"
            )
        end = last
        if 8 + length + last > size:
            raise UserError(
                f"{file} is truncated: {tensor.name!r} ends at byte {8 + length + last} of a file of {size} bytes"
            )
    if 8 + length + end != size:
        raise UserError(
            f"{file} has {size - 8 - length - end} bytes after its last tensor: no safetensors file does"
        )
    return Weights({name: tensor for name, (tensor, _, _) in tensors.items()}, (file,), metadata=metadata)


def _entry(file: Path, name: str, entry: object, data: int) -> tuple[Tensor, int, int]:
    """(the tensor of a header's entry, its first byte and its last). data: where the tensors begin."""
    try:
        kind, shape, offsets = (entry[key] for key in ("dtype", "shape", "data_offsets"))  # type: ignore[index]
        numbers = [*shape, *offsets]
        first, last = offsets
        if not isinstance(kind, str) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} has a wrong safetensors header: the entry of {name[:80]!r} is {shown(entry)}"
        ) from None
    if kind not in DTYPES:
        raise refused_dtype(file, name, kind)
    dtype, sizes = DTYPES[kind], tuple(shape)
    read = partial(read_at, file, data + first, sizes, dtype)
    tensor = Tensor(name, sizes, dtype, file, (file, first), read)
    if last - first != tensor.nbytes:
        raise UserError(
            f"{file} has a wrong safetensors header: {name[:80]!r} is {list(sizes)[:8]} but {last - first} bytes"
        )
    return tensor, first, last


def write_safetensors(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file one tensor at a time.

    tensors: {name: (shape, dtype)} in the order that `arrays` brings them. The metadata says "pt", which
    transformers and diffusers ask for, beside what is given.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for (name, array), expected in zip(_checked(arrays, tensors), tensors, strict=True):
            assert name == expected, f"{name} came where {expected} belongs"
            stream.write(bytes_of(array))


def _checked(
    arrays: Iterable[tuple[str, np.ndarray]], tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in arrays:
        assert (array.shape, array.dtype) == tensors[name], f"{name} is {array.shape} {array.dtype}"
        yield name, array


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated names {', '.join(repeated)}")
    return result
