"""Opens weights of any public kind without loading them, whatever their container.

Safetensors and TorchScript archives need no torch; pickles do.
"""

from __future__ import annotations

import json
from pathlib import Path

from mvader_jax.convert import foreign
from mvader_jax.convert.files import PICKLES, choose, lone, sets
from mvader_jax.convert.formats.safetensors import open_safetensors
from mvader_jax.convert.formats.torch_archive import is_torchscript, open_torchscript
from mvader_jax.convert.formats.torch_pickle import open_pickle
from mvader_jax.convert.tensors import Tensor, Weights, refuse_pointer
from mvader_jax.errors import UserError


def open_file(file: Path, *, trust_pickle: bool = False) -> Weights:
    """The tensors of one file, told apart by its bytes rather than its name.

    trust_pickle: also read pickles that can run code. Raises UserError for a file that is missing,
    truncated, a Git LFS pointer, of an unknown format, or a pickle that holds more than tensors.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist" if not file.exists() else f"{file} is not a file")
    refuse_pointer(file)
    what = foreign.format_of(file)
    if what is not None:
        raise UserError(f"{file} is {what}")
    if file.suffix == ".safetensors":
        return open_safetensors(file)
    if is_torchscript(file):
        return open_torchscript(file)
    with file.open("rb") as stream:
        start = stream.read(10)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return open_pickle(file, trust=trust_pickle)
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
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        good = isinstance(weight_map, dict) and all(isinstance(shard, str) for shard in weight_map.values())
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        good = False
    if not good or not weight_map:
        raise UserError(f"{index} is not the index of a sharded checkpoint: it has no weight_map of names")
    shards = sorted(set(weight_map.values()))
    if any(Path(shard).name != shard for shard in shards):
        raise UserError(f"{index} names a shard outside its own folder")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{index} names {len(missing)} shards that are missing: {', '.join(missing[:5])}{more}"
        )
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
        names = sorted(set(wrong))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(f"{index} and its shards do not agree on {', '.join(names[:5])}{more}")
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
