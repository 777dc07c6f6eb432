"""Opens weights of any public kind without loading them; the only file that knows torch.

Safetensors and TorchScript archives need no torch. Pickles go through torch's weights-only loader,
memory-mapped, and nothing else unless the user trusts the file.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import re
import sys
import types
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert import foreign
from mvader_jax.convert.files import PICKLES, choose, lone, sets
from mvader_jax.convert.formats.safetensors import open_safetensors
from mvader_jax.convert.formats.torch_archive import is_torchscript, open_torchscript
from mvader_jax.convert.tensors import DTYPES, Tensor, Weights, refuse_pointer
from mvader_jax.errors import UserError

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


def open_file(file: Path, *, trust_pickle: bool = False) -> Weights:
    """The tensors of one file, told apart by its bytes rather than its name.

    trust_pickle: also read pickles that can run code. Raises UserError for a file that is missing,
    truncated, a Git LFS pointer, of an unknown format, or a pickle that holds more than tensors.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist" if not file.exists() else f"{file} is not a file")
    refuse_pointer(file)
    if file.suffix == ".safetensors":
        return open_safetensors(file)
    try:
        if is_torchscript(file):
            return open_torchscript(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{file} is a damaged archive: {error}") from None
    with file.open("rb") as stream:
        start = stream.read(10)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _open_pickle(file, trust_pickle)
    if start[8:9] == b"{":
        return open_safetensors(file)
    raise UserError(
        f"{file} is neither safetensors nor a PyTorch file ({', '.join(PICKLES)}); it is damaged or something else"
    )


def open_index(index: Path, *, trust_pickle: bool = False) -> Weights:
    """The tensors of a sharded checkpoint by its `*.index.json`.

    Raises UserError for a shard that is missing, and where index and shards do not agree.
    """
    refuse_pointer(index)
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{index} is not the index of a sharded checkpoint: {error!r}") from None
    shards = sorted(set(weight_map.values()))
    if any(Path(shard).name != shard for shard in shards):
        raise UserError(f"{index} names a shard outside its own folder")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise UserError(f"{index} names {len(missing)} shards that are missing: {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    others: tuple[str, ...] = ()
    wrong: list[str] = []
    for shard in shards:
        opened = open_file(index.parent / shard, trust_pickle=trust_pickle)
        wrong += [f"{name} (also in {tensors[name].file.name})" for name in opened.tensors if name in tensors]
        wrong += [name for name in opened.tensors if weight_map.get(name) != shard]
        tensors.update(opened.tensors)
        others += opened.others
    wrong += [name for name in weight_map if name not in tensors]
    if wrong:
        raise UserError(f"{index} and its shards do not agree on {', '.join(sorted(set(wrong)))}")
    return Weights(tensors, tuple(index.parent / shard for shard in shards), others)


def open_folder(folder: Path, *, variant: str | None = None, trust_pickle: bool = False) -> Weights:
    """The weights of a Hugging Face folder: safetensors before .bin, sharded or not; or its only file.

    variant: which of several sets, as "fp16" in model.fp16.safetensors; without it the plain set is
    taken, or the only variant. Raises UserError where there is none, or several to choose from.
    """
    names = sorted(file.name for file in folder.iterdir())
    if not sets(names) and len(lone(names)) != 1:
        what = foreign.folder_of(folder)
        if what is not None and not (lone(names) and "folders" in what):
            raise UserError(f"{folder} {what}")
    file = folder / choose(names, variant, folder)
    opener = open_index if file.suffix == ".json" else open_file
    return opener(file, trust_pickle=trust_pickle)


def variants(folder: Path) -> tuple[str | None, ...]:
    """The sets of weights of a Hugging Face folder, as "fp16"; None for the plain one."""
    return tuple(sets(file.name for file in folder.iterdir())) if folder.is_dir() else ()


def _open_pickle(file: Path, trust: bool) -> Weights:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is a pickle, and reading one needs PyTorch: pip install 'mvader-jax[convert]'"
        ) from None
    # Files older than torch 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(file)
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
        needed = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({needed[1]})" if needed else ""
        raise UserError(
            f"{file} is a pickle that holds more than tensors{what}, and reading it could run its code; "
            "if you trust where it comes from, pass --trust-pickle"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} is truncated or damaged: {reason[:200]}") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    tensors, others = {}, []
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = _tensor(str(name), value, file, mapped)
        else:
            others.append(str(name))
    return Weights(tensors, (file,), tuple(others))


def _tensor(name: str, value: Any, file: Path, mapped: bool) -> Tensor:
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
        torch.bool: "BOOL",
    }.get(value.dtype)
    if kind is None or value.layout != torch.strided:
        raise UserError(f"{file}: {name} is {value.dtype} {value.layout}, which no model here has")
    storage = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
    read = partial(_read_torch, value.detach(), DTYPES[kind], mapped)
    return Tensor(name, tuple(value.shape), DTYPES[kind], file, storage, read)


def _read_torch(value: Any, dtype: np.dtype, mapped: bool) -> np.ndarray:
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
