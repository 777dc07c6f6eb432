"""PyTorch's pickles: through its weights-only loader, memory-mapped, and nothing else unless the user trusts the file."""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import sys
import types
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mvader_jax.convert import foreign
from mvader_jax.convert.formats.torch_archive import is_archive, members
from mvader_jax.convert.tensors import DTYPES, Tensor, Weights, plain, reason, refused_dtype
from mvader_jax.errors import UserError

if TYPE_CHECKING:
    import torch

#: What trainers wrap a state dict in: CompVis, DeepSpeed (MAGMA).
_WRAPPERS = ("state_dict", "module")
#: Classes that trainers leave beside the weights of public files. An inert stand-in takes their place in
#: the weights-only loader: neither they nor anything of theirs is imported or run.
_INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def open_pickle(file: Path, *, trust: bool = False) -> Weights:
    """The tensors of a pickle. trust: also read those that can run code.

    Raises UserError without PyTorch, for a damaged file, and for one that holds more than tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is a pickle, and reading one needs PyTorch: pip install 'mvader-jax[convert]'"
        ) from None
    mapped = _can_be_mapped(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if trust:
                lenient = types.SimpleNamespace(Unpickler=_Lenient, load=pickle.load, __name__="pickle")
                content = torch.load(
                    file, map_location="cpu", mmap=mapped, weights_only=False, pickle_module=lenient
                )
            else:
                with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
                    content = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_why(file, error, _protocol(file))) from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"{file} is truncated or damaged: {reason(error)}") from None
    if not is_archive(file) and _lacks_numbers(file):
        raise UserError(f"{file} is truncated or damaged: it lacks the numbers of tensors that it names")
    content = _unwrapped(content, file)
    tensors, others = {}, []
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = _tensor(str(name), value, file, mapped)
        else:
            others.append(str(name))
    return Weights(tensors, (file,), tuple(others))


def _can_be_mapped(file: Path) -> bool:
    """Whether tensors' bytes stand in the file as they are.

    Files older than torch 1.6 are no zip archives; archives that were packed again are compressed. Raises
    UserError for a compression, or a lock, that PyTorch does not undo.
    """
    if not is_archive(file):
        return False
    inside = members(file)
    if any(member.flag_bits & 1 for member in inside):
        raise UserError(f"{file} is an archive with a password; unpack and save it again")
    ways = {member.compress_type for member in inside}
    if not ways <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise UserError(
            f"{file} was packed again in a way that PyTorch does not read; unpack and zip it plainly"
        )
    if not any(member.filename.endswith("data.pkl") for member in inside):
        names = ", ".join(plain(member.filename) for member in inside[:3])
        raise UserError(
            f"{file} is a zip archive, but not PyTorch's: it holds {names or 'nothing'}; unpack it first"
        )
    return zipfile.ZIP_DEFLATED not in ways


class _Keys(pickle.Unpickler):
    """Notes which storages a pickle names; makes nothing of what it holds."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.keys: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        return dict if name == "OrderedDict" else _Inert

    def persistent_load(self, pid: Any) -> None:
        if isinstance(pid, tuple) and len(pid) > 2 and pid[0] == "storage":
            self.keys.add(str(pid[2]))


def _lacks_numbers(file: Path) -> bool:
    """Whether a file older than torch 1.6 names storages whose numbers do not follow: torch leaves them unset."""
    try:
        with file.open("rb") as stream:
            for _ in range(3):  # a magic number, the protocol, the machine
                _Keys(stream).load()
            content = _Keys(stream)
            content.load()
            follow = _Keys(stream).load()
    except Exception:  # what these pickles are made of, torch has judged already
        return False
    return not content.keys <= {str(key) for key in follow}


def _protocol(file: Path) -> int:
    """The protocol of a file's pickle."""
    try:
        if is_archive(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as stream:
                    start = stream.read(2)
        else:
            with file.open("rb") as raw:
                start = raw.read(2)
    except (StopIteration, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError):
        return 0
    return start[1] if start[:1] == b"\x80" else 0


def _why(file: Path, error: Exception, protocol: int) -> str:
    """Why the weights-only loader refuses a file."""
    if protocol > 3:
        return (
            f"{file} is a pickle of protocol {protocol}, which PyTorch's weights-only loader does not read; save it "
            "again with torch.save as it is (protocol 2) or as safetensors, or, if you trust where it comes from, "
            "pass --trust-pickle"
        )
    needed = re.search(r"GLOBAL (\S+)", str(error))
    what = f" ({needed[1]})" if needed else ""
    return (
        f"{file} is a pickle that holds more than tensors{what}, and reading it could run its code; "
        "if you trust where it comes from, pass --trust-pickle"
    )


def _unwrapped(content: Any, file: Path) -> dict[Any, Any]:
    """The dict of tensors within what trainers put around it. Raises UserError where there is none, or several."""
    import torch

    for _ in range(4):
        if not isinstance(content, dict):
            raise UserError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                return dict(content[wrapper])
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            break
        what = foreign.named([str(name) for name in content])
        if what is not None:
            raise UserError(f"{file} is {what}")
        inside = [name for name, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
        if len(inside) > 1:
            raise UserError(
                f"{file} holds several sets of tensors ({', '.join(map(str, inside[:5]))}); save the one that you "
                "want in a file of its own"
            )
        if not inside:
            break
        content = content[inside[0]]
    return dict(content)


def _has_tensors(content: dict[Any, Any], depth: int = 3) -> bool:
    import torch

    values = content.values()
    return any(isinstance(value, torch.Tensor) for value in values) or (
        depth > 0 and any(_has_tensors(value, depth - 1) for value in values if isinstance(value, dict))
    )


def _tensor(name: str, value: torch.Tensor, file: Path, mapped: bool) -> Tensor:
    import torch

    kind = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.uint16: "U16",
        torch.uint32: "U32",
        torch.uint64: "U64",
        torch.bool: "BOOL",
    }.get(value.dtype)
    if value.layout != torch.strided:
        raise UserError(f"{file}: {name} is {value.dtype} {value.layout}, which no model here has")
    if kind is None:
        raise refused_dtype(file, name, str(value.dtype).removeprefix("torch."))
    storage = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
    read = partial(_read_torch, value.detach(), DTYPES[kind], mapped)
    return Tensor(name, tuple(value.shape), DTYPES[kind], file, storage, read)


def _read_torch(value: torch.Tensor, dtype: np.dtype, mapped: bool) -> np.ndarray:
    """A copy of a tensor's numbers; the pages of the map that held them are given back at once."""
    import torch

    # NumPy knows no bfloat16: its bits travel as integers.
    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    result = bits.numpy().copy().view(dtype)
    if mapped and value.is_contiguous() and sys.platform == "linux":
        page = mmap.PAGESIZE
        first = -(-value.data_ptr() // page) * page
        last = (value.data_ptr() + result.nbytes) // page * page
        if last > first:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED)
            )
    return result


class _Inert:
    """Stands in for a class that is not needed: takes any arguments and state, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Lenient(pickle.Unpickler):
    """For trusted files: what is not installed becomes inert instead of ending the reading."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Inert
