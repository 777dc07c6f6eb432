"""A file of prompts, one JSON object per line, read strictly: a bad line is a problem of its own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.images.inputs import Inputs
from mvader_jax.images.names import check_no_url
from mvader_jax.images.png import utf8
from mvader_jax.prompt.elements import Image, Prompt
from mvader_jax.sampling.drawing import Drawing
from mvader_jax.sampling.pictures import INPUTS
from mvader_jax.sampling.settings import NAMES, STRENGTH, SamplingSettings, image_count
from mvader_jax.storage.atomic import local

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,149}")
KEYS = ("id", "prompt", "negative", "num_images", "init_image", *NAMES)


@dataclasses.dataclass(frozen=True)
class Request:
    """One good line. num_images: of each of its seeds. recorded: everything that shapes its pictures, as the file has
    it; kept with each. source: tells its file of prompts from others. init_image: a picture to start from.
    """

    line: int
    id: str
    prompt: Prompt
    negative: Prompt | None
    num_images: int
    settings: SamplingSettings
    recorded: dict[str, Any]
    source: str = ""
    init_image: Image | None = None

    @functools.cached_property
    def numbered(self) -> list[tuple[int, int]]:
        """(seed, index) of every picture."""
        return self.settings.numbered(self.num_images)

    @property
    def count(self) -> int:
        """The number of pictures."""
        return len(self.numbered)

    def file(self, number: int) -> str:
        """The name of a picture."""
        return f"{self.id}-{number:03d}.png"

    def row(self, number: int) -> dict[str, Any]:
        """The manifest's row of a picture."""
        seed, index = self.numbered[number]
        return {
            "file": self.file(number),
            "id": self.id,
            "prompts_file": self.source,
            **self.recorded,
            "seed": seed,
            "index": index,
        }

    @functools.cached_property
    def drawing(self) -> Drawing:
        """The same as its pictures keep it."""
        init = () if self.init_image is None else (self.init_image.image,)
        return Drawing(self.prompt, self.settings, self.negative, init_images=init)

    def note(self, number: int, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """What a picture keeps in its `info`. loaded: what drew it, as `Pipeline.load` takes it."""
        return self.drawing.note(*self.numbered[number], loaded) | {INPUTS: self._inputs}

    @functools.cached_property
    def _inputs(self) -> Inputs:
        # Those of a file of prompts are files that it lies beside: thousands of pictures may be drawn of them.
        return Inputs(self.drawing.inputs.sources, whole=not self.source)

    def shaped_by(self, number: int) -> dict[str, Any]:
        """What shapes a picture, beside its number in the file's name: the index is that under a single seed."""
        seed, index = self.numbered[number]
        return {**self.recorded, "seed": seed, **({} if index == number else {"index": index})}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a line's pictures are not there; line counts from 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read_requests(
    path: str | os.PathLike[str], defaults: SamplingSettings | None = None, *, num_images: int = 1
) -> tuple[list[Request], list[Problem]]:
    """The good lines of a file, and what is wrong with the others; blank lines are skipped.

    defaults, num_images: what a line that does not say takes.

    A line: {"id": "a", "prompt": [{"text": "..."}, {"image": "a.png", "weight": 0.3}], "negative": [...],
    "num_images": 4, "seed": 1, "guidance_scale": 8.0, "steps": 50, "sampler": "plms", "site": "both",
    "balance": false}, any other setting, or "init_image": a picture to start from, noised to `strength`; only
    `prompt` is needed. Image paths are relative to the file. An id (default: the line's number) is of letters,
    digits, '_', '.' and '-'. Raises UserError if the file cannot be read.
    """
    file = local(path)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read the prompts {str(file)!r}: {error.strerror or error}") from None
    except ValueError:
        raise UserError(f"the prompts {str(file)!r} have a path that the system does not accept") from None
    defaults = defaults or SamplingSettings()
    requests: list[Request] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    digest = functools.cache(_digest)
    source = f"{file.name} {fingerprint({'path': os.path.abspath(file)})}"
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            request = _request(number, line, file.parent, (defaults, image_count(num_images)), digest)
            if request.id in seen:
                raise UserError(f"the id {request.id!r} is that of line {seen[request.id]} already")
            seen[request.id] = number
            requests.append(dataclasses.replace(request, source=source))
        except UserError as error:
            problems.append(Problem(number, str(error)))
    if not lines or not (requests or problems):
        raise UserError(f"the prompts {str(file)!r} hold no line")
    return requests, problems


def _request(
    number: int,
    line: bytes,
    root: Path,
    defaults: tuple[SamplingSettings, int],
    digest: Callable[[str], str],
) -> Request:
    data = _object(line, first=number == 1)
    name = str(data["id"]) if data.get("id") is not None else f"{number:06d}"
    if isinstance(data.get("id"), (bool, float, list, dict)) or not _ID.fullmatch(name):
        raise UserError(f"the id {data['id']!r} is not of 1 to 150 letters, digits, '_', '.' and '-'")
    changes = {key: data[key] for key in NAMES if data.get(key) is not None}
    init = _init_image(data.get("init_image"), root)
    if init is None and "strength" in changes:
        raise UserError("it has a 'strength' but no 'init_image'")
    settings = defaults[0].changed(**({"strength": STRENGTH} if init else {}) | changes)
    count = image_count(defaults[1] if data.get("num_images") is None else data["num_images"])
    settings.numbered(count)
    meaning: dict[str, Any] = {
        "site": settings.site or "both",
        "balance": settings.balance or False,
        "long_prompts": settings.long_prompts or "cut",
    }
    prompt = Prompt.from_json(data["prompt"], root, **meaning)
    given = data.get("negative") or None
    if given is None and "negative_strength" in changes:
        raise UserError("it has a 'negative_strength' but no 'negative'")
    # A strength of 0 is the null prompt.
    ignored = given is None or settings.negative_strength == 0
    negative = None if ignored else Prompt.from_json(given, root, **meaning)
    shown = [element for one in (prompt, negative) if one for element in one.elements]
    images = [digest(os.fspath(element.path or "")) for element in shown if isinstance(element, Image)]
    started = {} if init is None else {"init_image": data["init_image"], "init_digest": digest(init)}
    recorded = {
        "prompt": data["prompt"],
        "negative": given or [],
        **settings.recorded(),
        **changes,
        # What the files hold: a picture of the same name is not the same prompt for long.
        **({"images": images} if images else {}),
        **started,
    }
    return Request(
        number,
        name,
        prompt,
        negative,
        count,
        settings,
        recorded,
        init_image=None if init is None else Image(init),
    )


def _init_image(value: Any, root: Path) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UserError(f"the init_image is {value!r:.80}; expected a path")
    check_no_url(value)
    return os.fspath(root / value)


def _object(line: bytes, *, first: bool) -> dict[str, Any]:
    """The JSON object of a line, its keys known, with a prompt. Raises UserError for anything else."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twice)
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
    return data


def _digest(path: str) -> str:
    """A short hash of a file's bytes. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
    except FileNotFoundError:
        raise UserError(f"the image {path!r} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read the image {path!r}: {error.strerror or error}") from None
    except ValueError:  # a NUL, or half of a character
        raise UserError(f"the image {path!r} has a path that the system does not accept") from None


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of JSON settings: two pictures of one fingerprint, seed and index are the same picture."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(utf8(text), digest_size=12).hexdigest()
