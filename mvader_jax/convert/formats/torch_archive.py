"""torch's zip archives: TorchScript read without torch, by an unpickler that makes nothing but plain data
(pytorch/pytorch torch/serialization.py); state dicts written by torch, one tensor at a time."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.tensors import DTYPES, Tensor, Weights, plain, read_at, reason
from mvader_jax.errors import UserError
from mvader_jax.storage.reader import bytes_of

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


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with compiled code beside its pickle."""
    return is_archive(file) and any("/code/" in member.filename for member in members(file))


def is_archive(file: Path) -> bool:
    """Whether a file is a zip archive. Raises UserError where it is a damaged one."""
    try:
        return zipfile.is_zipfile(file)
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise UserError(f"{file} is a damaged archive: {reason(error)}") from None


def members(file: Path) -> list[zipfile.ZipInfo]:
    """What a zip archive holds. Raises UserError where its directory is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise UserError(f"{file} is a damaged archive: {reason(error)}") from None
    size = file.stat().st_size
    for member in found:
        stored = member.compress_type != zipfile.ZIP_STORED or member.file_size == member.compress_size
        if not 0 <= member.header_offset <= member.header_offset + member.compress_size <= size or not stored:
            raise UserError(
                f"{file} is a damaged archive: {plain(member.filename)} is not where its directory says"
            )
    return found


def open_torchscript(file: Path) -> Weights:
    """The tensors of a TorchScript module by their dotted names; its code is not looked at.

    Raises UserError for an archive that is damaged, or whose pickle names anything but modules and tensors.
    """
    entries = {info.filename: info for info in members(file)}
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UserError(f"{file} is a TorchScript archive without its data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        try:
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise UserError(
                    f"{file} was written on a big-endian machine, which is not read; save it again"
                )
            module = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can raise almost anything
            raise UserError(f"{file} is a TorchScript archive that cannot be read: {reason(error)}") from None
    tensors: dict[str, Tensor] = {}

    def collect(prefix: str, value: Any, depth: int) -> None:
        if depth > 100:
            raise UserError(f"{file} is a TorchScript archive whose modules hold each other without end")
        if isinstance(value, _Object):
            for name, inner in value.state.items():
                collect(f"{prefix}.{name}" if prefix else str(name), inner, depth + 1)
        elif isinstance(value, _Stored):
            info = entries.get(f"{root}data/{value.key}")
            if info is None:
                raise UserError(f"{file} lacks the numbers of {prefix}")
            tensors[prefix] = value.tensor(prefix, file, info)

    collect("", module, 0)
    return Weights(tensors, (file,))


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
        if min((self.offset, *self.shape, *self.stride)) < 0 or len(self.shape) != len(self.stride):
            raise UserError(f"{file} is damaged: {name} has no sound place in its storage")
        reach = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and reach * self.dtype.itemsize > info.file_size:
            raise UserError(f"{file} is truncated: {name} reaches past its storage")
        storage = (file, self.key, self.offset, self.shape, self.stride)
        return Tensor(name, self.shape, self.dtype, file, storage, partial(self._read, file, info))

    def _read(self, file: Path, info: zipfile.ZipInfo) -> np.ndarray:
        count = info.file_size // self.dtype.itemsize
        if info.compress_type == zipfile.ZIP_STORED:
            flat = read_at(file, _data_offset(file, info), (count,), self.dtype)
            if flat.nbytes == info.file_size and zlib.crc32(bytes_of(flat)) != info.CRC:
                raise UserError(f"{file} is a damaged archive: {plain(info.filename)} has not its checksum")
        else:
            data = _unpacked(file, info)
            if len(data) != info.file_size:
                raise UserError(f"{file} is a damaged archive: {plain(info.filename)} is cut off")
            flat = np.frombuffer(data, self.dtype, count)
        strides = tuple(s * self.dtype.itemsize for s in self.stride)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)


def _unpacked(file: Path, info: zipfile.ZipInfo) -> bytes:
    """A member of an archive that was packed again, and compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.read(info.filename)
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(f"{file} is damaged: {info.filename} cannot be unpacked: {reason(error)}") from None


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


def write_torch(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[str, np.ndarray]],
    under: str,
) -> None:
    """`torch.save({under: {name: tensor}})` without holding the tensors in memory.

    They wait in a file beside `file`, as large as it, which torch maps: its pages are the kernel's to
    take back. tensors: {name: (shape, dtype)} in the order that `arrays` brings them. Raises UserError
    without PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is written by PyTorch, which is not installed: pip install 'mvader-jax[convert]'"
        ) from None
    waiting = file.with_name(f"{file.name}.waiting")
    places: dict[str, int] = {}
    with waiting.open("wb") as stream:
        for (name, array), expected in zip(arrays, tensors, strict=True):
            assert name == expected, f"{name} came where {expected} belongs"
            assert (array.shape, array.dtype) == tensors[name], f"{name} is {array.shape} {array.dtype}"
            stream.write(b"\0" * (-stream.tell() % 64))
            places[name] = stream.tell()
            stream.write(bytes_of(array))
    state = {}
    for name, (shape, dtype) in tensors.items():
        # NumPy's bfloat16 is none that torch knows: its bits travel as integers.
        bits = np.dtype(np.int16) if dtype == DTYPES["BF16"] else dtype
        if 0 in shape:
            tensor = torch.from_numpy(np.zeros(shape, bits))
        else:
            tensor = torch.from_numpy(
                np.memmap(waiting, bits, "c", places[name], shape or (1,)).reshape(shape)
            )
        state[name] = tensor.view(torch.bfloat16) if dtype == DTYPES["BF16"] else tensor
    torch.save({under: state}, file)
    del state
    waiting.unlink()
