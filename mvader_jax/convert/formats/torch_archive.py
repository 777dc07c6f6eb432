"""torch's zip archives without torch: TorchScript read by an unpickler that makes nothing but plain data,
and state dicts written one tensor at a time (pytorch/pytorch torch/serialization.py)."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.tensors import DTYPES, Tensor, Weights, bytes_of, read_at
from mvader_jax.errors import UserError

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_STORAGE_OF = {DTYPES[name]: storage for storage, name in _STORAGES.items()}


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with compiled code beside its pickle."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def open_torchscript(file: Path) -> Weights:
    """The tensors of a TorchScript module by their dotted names; its code is not looked at.

    Raises UserError for an archive that is damaged, or whose pickle names anything but modules and tensors.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UserError(f"{file} is a TorchScript archive without its data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        try:
            module = unpickler.load()
        except Exception as error:  # a damaged pickle can raise almost anything
            raise UserError(f"{file} is a TorchScript archive that cannot be read: {error}") from None
    tensors: dict[str, Tensor] = {}
    others: list[str] = []

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, _Object):
            for name, inner in value.state.items():
                collect(f"{prefix}.{name}" if prefix else name, inner)
        elif isinstance(value, _Stored):
            info = entries.get(f"{root}data/{value.key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{file} lacks the numbers of {prefix}")
            tensors[prefix] = value.tensor(prefix, file, info)

    collect("", module)
    return Weights(tensors, (file,), tuple(others))


class _Object:
    """A module of the archive: its attributes, whatever its class."""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Stored:
    """A tensor as its pickle tells it: a storage and a view of it."""

    def __init__(
        self, storage: tuple[Any, ...], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ):
        _, kind, self.key, _, _ = storage
        self.dtype = DTYPES[_STORAGES[kind]]
        self.offset, self.shape, self.stride = int(offset), tuple(map(int, size)), tuple(map(int, stride))

    def tensor(self, name: str, file: Path, info: zipfile.ZipInfo) -> Tensor:
        """The tensor of that name; `info` is its storage's place in the archive."""
        reach = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if reach * self.dtype.itemsize > info.file_size:
            raise UserError(f"{file} is truncated: {name} reaches past its storage")
        storage = (file, self.key, self.offset, self.shape, self.stride)
        return Tensor(name, self.shape, self.dtype, file, storage, partial(self._read, file, info))

    def _read(self, file: Path, info: zipfile.ZipInfo) -> np.ndarray:
        count = info.file_size // self.dtype.itemsize
        flat = read_at(file, _data_offset(file, info), (count,), self.dtype)
        strides = tuple(s * self.dtype.itemsize for s in self.stride)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)


def _data_offset(file: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose extra field has its own length."""
    with file.open("rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise UserError(f"{file} is damaged: {info.filename} is not where its directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)


class _Unpickler(pickle.Unpickler):
    """Knows modules, tensors and lists; any other name in the pickle is refused, nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Object
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Stored
        if module == "torch" and name in _STORAGES:
            return name
        if module == "collections" and name == "OrderedDict":
            return dict
        if module == "torch.jit._pickle":
            return _Object if name == "build_tensor_from_id" else _first
        raise pickle.UnpicklingError(f"its pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _first(value: Any = None, *_: Any) -> Any:
    return value


def write_state_dict(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[str, np.ndarray]],
    under: str | None,
) -> None:
    """Writes what `torch.save({under: {name: tensor}})` would (or the bare dict), one tensor at a time.

    tensors: {name: (shape, dtype)} in the order that `arrays` brings them. The pickle names only
    torch's own tensor rebuilder, so weights-only loaders take it.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", _pickled(tensors, under))
        archive.writestr("archive/byteorder", b"little")
        for key, ((name, array), expected) in enumerate(zip(arrays, tensors, strict=True)):
            assert name == expected, f"{name} came where {expected} belongs"
            assert (array.shape, array.dtype) == tensors[name], f"{name} is {array.shape} {array.dtype}"
            info = zipfile.ZipInfo(f"archive/data/{key}")
            info.file_size = array.nbytes
            # torch maps the file: its tensors want addresses that their type can stand on.
            start = archive.start_dir + 30 + len(info.filename) + 4 + 20
            padding = -start % 64
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(bytes_of(array))
        archive.writestr("archive/version", b"3\n")


def _pickled(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], under: str | None) -> bytes:
    """The pickle of the dict, written opcode by opcode: pickle itself would have to import torch."""
    out = io.BytesIO()

    def text(value: str) -> None:
        data = value.encode()
        out.write(b"X" + struct.pack("<I", len(data)) + data)

    def integer(value: int) -> None:
        if value < 1 << 31:
            out.write(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            out.write(b"\x8a" + bytes([len(data)]) + data)

    def integers(values: Iterable[int]) -> None:
        out.write(b"(")
        for value in values:
            integer(value)
        out.write(b"t")

    out.write(b"\x80\x02")
    if under is not None:
        out.write(b"}")
        text(under)
    out.write(b"}(")
    for key, (name, (shape, dtype)) in enumerate(tensors.items()):
        text(name)
        strides: list[int] = []
        step = 1
        for length in reversed(shape):
            strides.insert(0, step)
            step *= length
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        text("storage")
        out.write(b"ctorch\n" + _STORAGE_OF[dtype].encode() + b"\n")
        text(str(key))
        text("cpu")
        integer(step)
        out.write(b"tQ")
        integer(0)
        integers(shape)
        integers(strides)
        out.write(b"\x89ccollections\nOrderedDict\n)RtR")
    out.write(b"u")
    if under is not None:
        out.write(b"s")
    out.write(b".")
    return out.getvalue()
