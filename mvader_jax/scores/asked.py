"""What each picture was asked to be: its texts and pictures, from a file of prompts or from what drew it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.prompt.parse import parse_part
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.manifest import read_rows


@dataclasses.dataclass(frozen=True)
class Asked:
    """text: a prompt's texts, one after the other; images: its pictures."""

    text: str
    images: tuple[Path, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt) -> Asked:
        texts = [one.text for one in prompt.elements if isinstance(one, Text)]
        images = [one.path for one in prompt.elements if isinstance(one, Image)]
        return cls(" ".join(texts), tuple(Path(os.fspath(path)) for path in images if path is not None))


def read_asked(pictures: Sequence[Path], folder: Path, prompts: Path | None) -> list[Asked]:
    """What each picture was asked to be.

    prompts: a file of prompts as `mvader sample --prompts` reads it, whose ids name the pictures, ID.png or ID-000.png;
    None: the folder's manifest, which `mvader sample` writes. Raises UserError where a picture is of no prompt.
    """
    known = _by_manifest(folder) if prompts is None else _by_id(prompts)
    where = f"{str(folder / 'manifest.jsonl')!r}" if prompts is None else f"the prompts {str(prompts)!r}"
    found, missing = [], []
    for path in pictures:
        one = known.get(path.name) or known.get(path.stem) or known.get(re.sub(r"-\d{3,}$", "", path.stem))
        if one is None:
            missing.append(path.name)
        else:
            found.append(one)
    if missing:
        hint = "; name them with --prompts FILE" if prompts is None else ""
        raise UserError(
            f"{where} tells nothing of {len(missing)} of {len(pictures)} pictures; the first is {missing[0]}{hint}"
        )
    return found


def _by_id(prompts: Path) -> dict[str, Asked]:
    requests, problems = read_requests(prompts)
    if problems:
        raise UserError(f"the prompts {str(prompts)!r}, {problems[0]}")
    return {request.id: Asked.of(request.prompt) for request in requests}


def _by_manifest(folder: Path) -> dict[str, Asked]:
    return {row["file"]: one for row in read_rows(folder) if (one := _of_row(row, folder)) is not None}


def _of_row(row: Mapping[str, Any], folder: Path) -> Asked | None:
    """Of a manifest's row; the paths of its pictures were relative to what nobody knows any more."""
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        return Asked(prompt) if isinstance(prompt, str) else None
    texts: list[str] = []
    for part in prompt:
        if isinstance(part, str):
            with contextlib.suppress(UserError):  # a picture that is not there
                element = parse_part(part)
                texts += [element.text] if isinstance(element, Text) else []
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
    return Asked(" ".join(texts))
