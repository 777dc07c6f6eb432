"""What a checkpoint says of its origin, and what has changed since it was saved."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from mvader_jax import __version__
from mvader_jax.data.config import DataConfig
from mvader_jax.errors import UserError
from mvader_jax.settings import from_dict, modern, to_dict
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.lora import component_of
from mvader_jax.train.run import Run


def description(config: TrainConfig, stage_name: str, run: Run) -> dict[str, Any]:
    """What a checkpoint says of its origin: the config, the code, the mesh, the parameters the stage started from."""
    records = run.start.bundle.records
    return {
        "config": to_dict(config),
        "stage": stage_name,
        "version": code_version(),
        "jax": jax.__version__,
        "mesh": dict(run.mesh.shape),
        "start": {name: record.get("sha256") for name, record in sorted(records.items())},
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, what of a description is not as it was; only what bears on the stage's numbers."""
    found = []
    before, now = (
        flatten_dict({"model": config["model"], "stage": config["stages"][stage]}, sep=".")
        for config, stage in ((todays(d["config"]), d["stage"]) for d in (old, new))
    )
    for name in sorted(now.keys() | before.keys()):
        if name not in before:
            found.append(f"{name} is new: {now[name]}")
        elif name not in now:
            found.append(f"{name}, which was {before[name]}, is gone")
        elif before[name] != now[name]:
            found.append(f"{name} changed from {before[name]} to {now[name]}")
    for name, digest in new["start"].items():
        earlier = old.get("start", {}).get(name)
        if earlier and digest and earlier != digest:
            found.append(f"the {name} that the stage starts from was replaced by another")
    return found


def todays(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stored settings under today's keys; those that are new since have their defaults."""
    config = modern(TrainConfig, config)
    try:
        full: Mapping[str, Any] = to_dict(from_dict(TrainConfig, config))
    except UserError:
        return config
    return full


@functools.cache
def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout ('-dirty': with changes)."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{done.stdout.strip()}"


def trained_by(config: TrainConfig, stage_name: str, steps: int, code: str) -> dict[str, Any]:
    """What a bundle's config.json says of the stage that trained a component."""
    data = data_in_words(config.stage(stage_name).data)
    return {"stage": stage_name, "config": config.name, "steps": steps, "data": data, "code": code}


def trained_records(
    bundle: Bundle, groups: Iterable[str], trained: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What config.json says of a bundle's components, with what trained those of `groups` (paths of parameters)."""
    names = {component_of(path) for path in groups}
    records = {name: dict(bundle.records.get(name, {})) for name in bundle.components}
    for name in names & records.keys():
        records[name]["trained"] = dict(trained)
    if any(path.startswith("unet/") and "/attn2/to_k" in path for path in groups):
        records["unet"].pop("fresh", None)
    return records


def data_in_words(data: DataConfig) -> str:
    """Where a stage's records came from, shortly."""
    paths = data.precomputed or getattr(data.source, "paths", ())
    encoded = "precomputed " if data.precomputed else ""
    return f"{encoded}{data.source.kind}{' of ' if paths else ''}{', '.join(paths)}"
