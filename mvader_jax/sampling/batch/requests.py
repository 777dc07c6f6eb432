"""A file of prompts, a JSON object a line, read strictly: a bad line is a problem of its own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import SITES, Image, Prompt, Site
from mvader_jax.sampling.pipeline import check_seed, check_steps, check_strength

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,149}")
KEYS = (
    "id",
    "prompt",
    "negative",
    "negative_strength",
    "num_images",
    "seed",
    "guidance_scale",
    "steps",
    "sampler",
    "site",
    "balance",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a line that does not say takes."""

    num_images: int = 1
    seed: int = 0
    guidance_scale: float = 8.0
    steps: int = 50
    sampler: str = "plms"
    site: Site = "both"
    balance: bool = False
    negative_strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class Request:
    """One good line. settings: everything that shapes its pictures, as the file has it; recorded with each."""

    line: int
    id: str
    prompt: Prompt
    negative: Prompt | None
    negative_strength: float
    num_images: int
    seed: int
    guidance_scale: float
    steps: int
    sampler: str
    settings: dict[str, Any]

    def file(self, index: int) -> str:
        """The name of picture number `index`."""
        return f"{self.id}-{index:03d}.png"

    def row(self, index: int) -> dict[str, Any]:
        """The manifest's row of picture number `index`."""
        return {"file": self.file(index), "id": self.id, "index": index, **self.settings}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a line's pictures are not there; line counts from 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read_requests(
    path: str | os.PathLike[str], defaults: Settings | None = None
) -> tuple[list[Request], list[Problem]]:
    """The good lines of a file, and what is wrong with the others; blank lines are skipped.

    A line: {"id": "a", "prompt": [{"text": "..."}, {"image": "a.png", "weight": 0.3}], "negative": [...],
    "num_images": 4, "seed": 1, "guidance_scale": 8.0, "steps": 50, "sampler": "plms", "site": "both",
    "balance": false}; only `prompt` is needed. Image paths are relative to the file. An id (default: the
    line's number) is of letters, digits, '_', '.' and '-'. Raises UserError if the file cannot be read, or a
    default is not accepted.
    """
    file = Path(path)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read the prompts {str(file)!r}: {error.strerror or error}") from None
    defaults = defaults or Settings()
    _check(dataclasses.asdict(defaults))
    requests: list[Request] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    digest = functools.cache(_digest)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            request = _request(number, line, file.parent, defaults, digest)
            if request.id in seen:
                raise UserError(f"the id {request.id!r} is that of line {seen[request.id]} already")
            seen[request.id] = number
            requests.append(request)
        except UserError as error:
            problems.append(Problem(number, str(error)))
    if not lines or not (requests or problems):
        raise UserError(f"the prompts {str(file)!r} hold no line")
    return requests, problems


def _request(
    number: int, line: bytes, root: Path, defaults: Settings, digest: Callable[[str], str]
) -> Request:
    try:
        data = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise UserError("it is not UTF-8") from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError("it is not a JSON object")
    for key in data:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}; known: {', '.join(KEYS)}")
    if "prompt" not in data:
        raise UserError("it has no 'prompt'")
    values = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(Settings)}
    values.update({key: data[key] for key in values if data.get(key) is not None})
    _check(values)
    name = str(data["id"]) if data.get("id") is not None else f"{number:06d}"
    if isinstance(data.get("id"), (bool, float, list, dict)) or not _ID.fullmatch(name):
        raise UserError(f"the id {data['id']!r} is not of 1 to 150 letters, digits, '_', '.' and '-'")
    meaning: dict[str, Any] = {"site": values["site"], "balance": values["balance"]}
    prompt = Prompt.from_json(data["prompt"], root, **meaning)
    against = data.get("negative") or None
    # A strength of 0 is the null prompt.
    ignored = against is None or values["negative_strength"] == 0
    negative = None if ignored else Prompt.from_json(against, root, **meaning)
    shown = [element for one in (prompt, negative) if one for element in one.elements]
    images = [digest(os.fspath(element.path or "")) for element in shown if isinstance(element, Image)]
    settings = {
        "prompt": data["prompt"],
        "negative": against or [],
        **{key: value for key, value in values.items() if key != "num_images"},
        # What the files hold: a picture of the same name is not the same prompt for long.
        **({"images": images} if images else {}),
    }
    return Request(
        number,
        name,
        prompt,
        negative,
        float(values["negative_strength"]),
        values["num_images"],
        values["seed"],
        float(values["guidance_scale"]),
        values["steps"],
        values["sampler"],
        settings,
    )


def _digest(path: str) -> str:
    """A short hash of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
    except FileNotFoundError:
        raise UserError(f"the image {path!r} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read the image {path!r}: {error.strerror or error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check(values: Mapping[str, Any]) -> None:
    for key in ("num_images", "seed", "steps"):
        if type(values[key]) is not int:
            raise UserError(f"{key} is {values[key]!r}; expected a whole number")
    if not 1 <= values["num_images"] <= 1_000_000:
        raise UserError(f"num_images is {values['num_images']}; accepted are 1 to 1000000")
    check_seed(values["seed"])
    check_steps(values["steps"])
    check_strength(_number(values, "negative_strength"))
    if not math.isfinite(_number(values, "guidance_scale")):
        raise UserError(f"guidance_scale is {values['guidance_scale']!r}; expected a finite number")
    for key, known in (("sampler", tuple(SAMPLERS)), ("site", SITES)):
        if values[key] not in known:
            raise UserError(f"{key} is {values[key]!r}; accepted: {', '.join(known)}")
    if not isinstance(values["balance"], bool):
        raise UserError(f"balance is {values['balance']!r}; expected true or false")


def _number(values: Mapping[str, Any], key: str) -> float:
    if isinstance(values[key], bool) or not isinstance(values[key], (int, float)):
        raise UserError(f"{key} is {values[key]!r}; expected a number")
    return float(values[key])


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of JSON settings: two pictures of one fingerprint, seed and index are the same picture."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
