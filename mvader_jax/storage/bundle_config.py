"""A bundle's `config.json`, read strictly, and where bundles are found."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError, first_line
from mvader_jax.models.components import COMPONENTS
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.words import WORDS_FILE
from mvader_jax.settings import convert, from_dict, to_dict
from mvader_jax.storage import hub
from mvader_jax.storage.atomic import local, write_file

ASSETS = Path(__file__).parents[1] / "assets"
Record = dict[str, Any]
FORMAT = 1
#: What config.json says of who wrote it; bundles of earlier versions do not.
_MARK = {"written_by": "mvader_jax"}
_KEYS = {"format", "model", "components", *_MARK}
#: What a tokenizer is written as.
_TOKENIZER = ("tokenizer.json", WORDS_FILE)
#: The files of a component's directory: of training by Orbax, and of conversions, one array a folder.
_WRITTEN = re.compile(
    r"_\w+(\.json)?|commit_success\.txt|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\w+/)?(d/[0-9a-f]+|manifest\.ocdbt(\.__lock)?)|[^/]+/(\.zarray|[0-9.]+)"
)
#: How a stage's run is named, and a step of it.
RUN = re.compile(r"(?P<directory>.+?)(?:@(?P<step>\d+))?")
#: The types of what a component's record may say.
_RECORD: dict[str, Any] = {
    "parameters": int,
    "dtypes": tuple[str, ...],
    "sha256": str,
    "kind": str,
    "source": str,
    "files": tuple[str, ...],
    "fresh": str,
    "trained": str | dict[str, Any],
    "not_finite": tuple[str, ...],
}


def find_bundle(name: str | Path) -> Path:
    """The directory of a bundle given by path, by the name of an embedded one, or as hf:ORG/NAME[@REVISION].

    Raises UserError, naming the embedded ones, when there is none, and as `hub.download` does.
    """
    if hub.is_address(name):
        return hub.download(name, lambda names: bundle_files(names, str(name))).path
    for path in (local(name), ASSETS / str(name)):
        if (path / "config.json").is_file():
            return path
    known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    what = "has no config.json" if Path(name).is_dir() else "is neither a directory nor an embedded bundle"
    raise UserError(f"no bundle {str(name)!r}: it {what} (embedded: {', '.join(known) or 'none'})")


def is_run(name: str | Path) -> bool:
    """Whether a name means a stage's run, RUN/STAGE[@STEP], rather than a bundle."""
    match = RUN.fullmatch(str(name))
    return match is not None and (Path(match["directory"]) / "checkpoints").is_dir()


def holds_fast(name: str | Path) -> bool:
    """Whether a bundle, named as `find_bundle` takes it, holds a few-step UNet beside its own; of a run False.

    Whoever draws while a person waits asks this. Raises UserError as `find_bundle` and `read_model` do.
    """
    return not is_run(name) and "unet_fast" in read_model(find_bundle(name))[1]


def bundle_files(names: Sequence[str], where: str) -> list[str]:
    """Of the paths below a folder, those of a bundle. Raises UserError where they are none's."""
    parts = [name for name in names if name.partition("/")[0] in (*COMPONENTS, "tokenizer") and "/" in name]
    if "config.json" not in names or not any(name.endswith("/_METADATA") for name in parts):
        raise UserError(
            f"{where} is no bundle of mvader; weights of other programs become one with `mvader convert`"
        )
    return ["config.json", *parts]


def read_config(path: str | Path) -> dict[str, Any]:
    """The JSON of a bundle's config: {"format", "model", "components": {name: its record}}.

    Raises UserError where it is damaged, of a newer format, or says what this version would not heed.
    """
    file = Path(path) / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from None
    if not isinstance(data, dict) or not isinstance(data.get("format"), int) or "model" not in data:
        raise UserError(f"{file} is not a bundle config of mvader_jax")
    if data["format"] != FORMAT:
        raise UserError(
            f"{file} is of format {data['format']}, which this version does not read (it reads format {FORMAT})"
        )
    for key in data.keys() - _KEYS:
        raise UserError(f"unknown key {key!r} in {file}; known: {', '.join(sorted(_KEYS))}")
    records = convert(dict[str, dict[str, Any]], data.get("components", {}), f"{file}: components")
    for name, record in records.items():
        if name not in COMPONENTS:
            raise UserError(f"unknown component {name!r} in {file}; known: {', '.join(COMPONENTS)}")
        for key, hint in _RECORD.items():
            if key in record:
                convert(hint, record[key], f"{file}: components.{name}.{key}")
    return {**data, "components": records}


def read_model(path: str | Path) -> tuple[ModelConfig, dict[str, Record]]:
    """(architecture, {component: its record}) of a bundle. Raises UserError as `read_config` does."""
    data = read_config(path)
    model = from_dict(ModelConfig, data["model"], f"{path}/config.json: model")
    for name in data["components"]:
        if getattr(model, COMPONENTS[name]) is None:
            raise UserError(f"{path}/config.json holds {name}, but its model has no {COMPONENTS[name]}")
    if "unet_fast" not in data["components"]:
        # It was left behind, and the model draws in many steps: other components may be in another bundle.
        model = dataclasses.replace(model, unet_fast=None)
    return model, data["components"]


def hashes(path: Path) -> dict[str, str]:
    """{component: the SHA-256 it was written with}, where it is known.

    Several processes, before bundles were marked, left the hash of what a training had started from.
    """
    data = read_config(path)
    return {
        name: record["sha256"]
        for name, record in data["components"].items()
        if "sha256" in record and (_MARK.items() <= data.items() or "trained" not in record)
    }


def not_ours(path: Path) -> str:
    """What, in words, of a directory that is to be replaced is no bundle of this package; "" where it is one.

    An empty directory may be replaced too.
    """
    if not path.is_dir():
        return "it is not a directory"
    held = {entry.name for entry in path.iterdir()}
    if not held:
        return ""
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
        names = {*data["components"], "tokenizer", "config.json"}
        known = data["format"] == FORMAT and _KEYS - set(_MARK) <= set(data) <= _KEYS
        known = known and all(data.get(key, mark) == mark for key, mark in _MARK.items())
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        return "it holds no bundle that mvader wrote"
    foreign = sorted(held - names)
    for name in sorted(held & set(data["components"])):
        files = (file for file in (path / name).rglob("*") if not file.is_dir() or file.is_symlink())
        within = (file.relative_to(path / name).as_posix() for file in files)
        foreign += sorted(f"{name}/{file}" for file in within if not _WRITTEN.fullmatch(file))
    tokenizer = path / "tokenizer"
    foreign += sorted(f"tokenizer/{file.name}" for file in tokenizer.glob("*") if file.name not in _TOKENIZER)
    return f"beside a bundle it holds {', '.join(foreign[:4])}" if foreign else ""


def write_config(path: Path, model: ModelConfig, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a bundle's config.json."""
    write_json(path, {"format": FORMAT, **_MARK, "model": to_dict(model), "components": records})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_file(path / "config.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
