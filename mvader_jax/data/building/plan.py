"""What a build is of: its parts, its filters, and the very files that it reads. It is known again by these."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import Part
from mvader_jax.data.building.report import Report
from mvader_jax.data.building.schema import REPORT
from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, sweep, write_file
from mvader_jax.storage.lock import only_user

WORK = "unfinished"
_PLAN = "plan.json"


def make_plan(parts: Sequence[Part], name: str, filters: FilterConfig) -> dict[str, Any]:
    """Plain JSON values that are the same for the same build of the same files, wherever these lie."""
    return {
        "name": name,
        "parts": [part.name for part in parts],
        "filters": json.loads(json.dumps(dataclasses.asdict(filters))),
        "source": [fingerprint(part) for part in parts],
    }


def fingerprint(part: Part) -> str:
    """Of a part's files the names, sizes and times; and what it says of itself."""
    digest = hashlib.sha256()
    for item in part.files():
        words = item
        if isinstance(item, pathlib.Path):
            words = item.name
            with contextlib.suppress(OSError, ValueError):
                state = item.stat()
                words = f"{item.name} {state.st_size} {state.st_mtime_ns}"
        digest.update(str(words).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def finished(out: str | os.PathLike[str], plan: dict[str, Any]) -> Report | None:
    """The report of a finished build of this plan in `out`; None where there is none of any plan.

    Raises UserError where `out` holds another one.
    """
    file = local(out) / REPORT
    if not file.is_file():
        return None
    before = _read(file)
    difference = _difference(before.get("plan"), plan)
    if difference:
        raise UserError(f"{os.fspath(out)!r} holds a finished build {difference}; name a new folder")
    try:
        return Report.from_json(before["report"])
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {type(error).__name__}; name a new folder") from None


@contextlib.contextmanager
def begun(out: str | os.PathLike[str], plan: dict[str, Any]) -> Iterator[None]:
    """Makes the folder, or goes on with an unfinished build of this plan; nobody else builds there meanwhile.

    Raises UserError where `out` holds something else, or another process builds there.
    """
    directory = local(out)
    work, file = directory / WORK, directory / WORK / _PLAN
    if file.is_file():
        difference = _difference(_read(file), plan)
        if difference:
            raise UserError(
                f"{os.fspath(out)!r} holds an unfinished build {difference}; delete it or name a new folder"
            )
    elif directory.is_dir() and any(entry.name != WORK for entry in directory.iterdir()):
        raise UserError(f"{os.fspath(out)!r} is not empty; name a new folder")
    with only_user(work):
        if not file.is_file():
            write_file(file, json.dumps(plan, indent=1))
        sweep(directory)
        sweep(work)
        yield


def check_columns(parts: Sequence[Part], filters: FilterConfig) -> None:
    """Raises UserError if a part's metadata lacks a column that a filter needs, or no part has metadata."""
    if not filters.needs():
        return
    known = {part.name: part.columns() for part in parts}
    for name, names in known.items():
        if names is not None:
            filters.check_columns(names, f"part {name!r}")
    if all(names is None for names in known.values()):
        filters.check_columns((), "the source")


def repeated_keys(parts: Sequence[Part]) -> list[frozenset[str]]:
    """For each part, the keys that an earlier part has too: the first one is kept."""
    # Numbers first, since there may be forty million: only what occurs twice is looked at as text.
    hashes = [np.unique(np.fromiter((hash(key) for key in part.key_list()), np.int64)) for part in parts]
    unique, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = unique[counts > 1]
    suspects = set(twice.tolist())
    seen: set[str] = set()
    repeated = []
    for part, known in zip(parts, hashes, strict=True):
        here = {k for k in part.key_list() if hash(k) in suspects} if np.isin(known, twice).any() else set()
        repeated.append(frozenset(here & seen))
        seen |= here
    return repeated


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {error}; name a new folder") from None
    return value if isinstance(value, dict) else {}


def _difference(before: Any, plan: dict[str, Any]) -> str:
    """In words, what sets an earlier plan apart from this one; empty where nothing does."""
    before = before if isinstance(before, dict) else {}
    if before == plan:
        return ""
    if {**before, "source": None} != {**plan, "source": None}:
        return "of other parts or with other filters"
    if "source" not in before:
        return "by an earlier version, which did not note the files of its source"
    pairs = zip(plan["parts"], before["source"], plan["source"], strict=True)
    part = next(name for name, old, new in pairs if old != new)
    return f"of another source, or its files have changed since (the first is part {part!r})"
