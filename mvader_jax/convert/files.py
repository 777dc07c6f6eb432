"""Which files of a folder a conversion reads, told by their names alone: of a disk's folder or of the hub's listing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mvader_jax.errors import UserError
from mvader_jax.storage import hub

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS = (".safetensors", *PICKLES)
#: The folders of a diffusers pipeline whose weights are converted.
PIPELINE = ("unet", "vae", "text_encoder")
_STEM = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:\.(?P<variant>\w+))?(?P<shard>-\d+-of-\d+)?"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<index_variant>\w+))?\.json)?"
)

_INDEX = re.compile(
    r"(?P<base>\w+)(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)\.index(?:\.(?P<last>\w+))?\.json"
)
_SHARD = re.compile(
    r"(?P<base>\w+)(?:\.(?P<variant>\w+))?-\d+-of-\d+(?:\.(?P<last>\w+))?\.(?P<kind>safetensors|bin)"
)


def sets(names: Iterable[str]) -> dict[str | None, dict[bool, str]]:
    """{variant, as "fp16", or None for the plain set: {whether it is a pickle: its file, or its index}}."""
    found: dict[str | None, dict[bool, str]] = {}
    for name in sorted(names):
        match = _STEM.fullmatch(name)
        if match and not match["shard"]:
            of = match["variant"] or match["index_variant"]
            found.setdefault(of, {})[match["kind"] == "bin"] = name
    return found


def choose(names: Iterable[str], variant: str | None, where: str | Path) -> str:
    """The file with a folder's weights, or the index of its shards: safetensors before .bin; or its only file.

    names: of the folder's files. variant: which of several sets; without it the plain set is taken, or the only
    variant. where: the folder, for messages. Raises UserError where there is none, or several to choose from.
    """
    names = sorted(names)
    found, files = sets(names), lone(names)
    if not found and len(files) == 1:
        if variant is not None:
            raise UserError(f"{where} has one file of weights, so --variant has nothing to choose from")
        return files[0]
    if not found:
        raise UserError(
            f"{where} holds no weights that are known by their name: looked for model.safetensors, "
            "pytorch_model.bin, diffusion_pytorch_model.safetensors or .bin, sharded or not, or one file alone"
            + (f"; it has {', '.join(files[:4])}: name one of them" if files else "")
        )
    wanted = variant or (None if None in found or len(found) > 1 else next(iter(found)))
    if wanted not in found:
        known = [one for one in found if one is not None]
        remedy = f"pass --variant with one of: {', '.join(known)}" if known else "leave out --variant"
        plain = " (without it the plain ones are taken)" if known and None in found else ""
        have = f"no weights of variant {wanted!r}" if wanted else "only weights of several variants"
        raise UserError(f"{where} has {have}; {remedy}{plain}")
    kinds = found[wanted]
    return kinds[min(kinds)]


def lone(names: Iterable[str]) -> list[str]:
    """The files of weights, whatever they are called."""
    return [name for name in names if name.endswith(WEIGHTS)]


def is_pipeline(names: Iterable[str]) -> bool:
    """Whether a folder of these files (paths below it) is a diffusers pipeline's."""
    return bool({"model_index.json", "unet/config.json"} & set(names))


def needed(names: Sequence[str], variant: str | None, where: str) -> list[str]:
    """Of the paths below a folder, those that a conversion reads: weights, and all settings and vocabularies.

    Raises UserError as `choose` does.
    """
    folders = PIPELINE if is_pipeline(names) else ("",)
    inside = {
        folder: [name.rpartition("/")[2] for name in names if _folder(name) == folder] for folder in folders
    }
    inside = {folder: files for folder, files in inside.items() if files}
    if not inside:
        raise UserError(f"{where} has none of the folders {', '.join(PIPELINE)}")
    weights = set()
    for folder, files in inside.items():
        # A pipeline's parts without the variant are taken plain, as long as one has it.
        lacks = variant not in sets(files) and any(variant in sets(other) for other in inside.values())
        place = f"{where}/{folder}" if folder else where
        chosen = choose(files, None if lacks else variant, place)
        weights |= {f"{folder}/{file}".lstrip("/") for file in _with_shards(chosen, files)}
    return sorted({name for name in names if _is_small(name)} | weights)


def vocabulary(names: Sequence[str]) -> list[str]:
    """Of the paths below a folder, the small files at its top: a vocabulary and its settings."""
    return [name for name in names if _is_small(name) and "/" not in name]


def fetch(source: Path, variant: str | None, *, quiet: bool = False) -> hub.Found:
    """A source of weights on this machine: where it lies, or where it was downloaded to (`hf:ORG/NAME[@REVISION]`).

    Raises UserError as `hub.download` and `choose` do.
    """
    if not hub.is_address(source):
        return hub.Found(source, source.name)
    return hub.download(source, lambda names: needed(names, variant, str(source)), quiet=quiet)


def fetch_vocabulary(source: Path | None, *, quiet: bool = False) -> Path | None:
    """The same of a folder with a vocabulary."""
    if source is None or not hub.is_address(source):
        return source
    return hub.download(source, vocabulary, quiet=quiet).path


def _is_small(name: str) -> bool:
    """Settings, indices and vocabularies, but no weights whatever they are called."""
    return name.endswith((".json", ".txt")) and not name.endswith(".index.json")


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _with_shards(chosen: str, files: Iterable[str]) -> set[str]:
    """The names of a file, or of an index and its shards."""
    index = _INDEX.fullmatch(chosen)
    if index is None:
        return {chosen}
    wanted = (index["base"], index["variant"] or index["last"], index["kind"])
    shards = [match for file in files if (match := _SHARD.fullmatch(file))]
    found = {m[0] for m in shards if (m["base"], m["variant"] or m["last"], m["kind"]) == wanted}
    return {chosen} | found
