"""What a page asks for as a command line and as a Python call, and the files that these name."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from mvader_jax.images.names import names_picture
from mvader_jax.sampling.settings import FAST, SamplingSettings
from mvader_jax.web.asked import Asked, Part, Region

#: The name of a file of prompts, where a command needs one.
PROMPTS = "prompt.jsonl"


@dataclasses.dataclass(frozen=True)
class Opened:
    """What draws: the options of `mvader web`, which are those of `mvader sample`."""

    bundle: str = "tiny"
    dtype: str = "float32"
    frozen_dtype: str | None = None
    mesh: str = ""
    raw: bool = False

    def flags(self, fast: bool) -> list[str]:
        """As arguments."""
        flags = ["--fast"] * fast + ["--raw"] * self.raw
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "raw" and value != field.default:
                flags += [f"--{field.name.replace('_', '-')}", str(value)]
        return flags

    def python(self, fast: bool) -> list[str]:
        """As lines of Python that make `pipe`."""
        options = [repr(self.bundle)]
        options += [f"fast={fast}"] * fast + [f"raw={self.raw}"] * self.raw
        options += [f"dtype={self.dtype!r}"] * (self.dtype != Opened.dtype)
        options += [f"frozen_dtype={self.frozen_dtype!r}"] * (self.frozen_dtype is not None)
        lines = ["import mvader_jax as mv"]
        if self.mesh:
            lines.append("from mvader_jax.parallel.mesh import open_mesh")
            options.append(f"mesh=open_mesh({self.mesh!r})")
        return [*lines, "", f"pipe = mv.Pipeline.load({', '.join(options)})"]


@dataclasses.dataclass(frozen=True)
class Said:
    """command, python: to be copied; files: {name: id of a picture} that they name; prompts: the text of PROMPTS, which
    the command names where weights of words or regions are in no argument."""

    command: str
    python: str
    files: dict[str, str]
    prompts: str = ""


def say(asked: Asked, opened: Opened) -> Said:
    """Both ways of drawing the same."""
    files = {
        name: id
        for part in (*asked.parts, *asked.negative)
        if part.picture is not None
        for name, id in {
            part.name: part.picture,
            **{_mask(part, region): region.mask for region in part.regions},
        }.items()
    }
    python = "\n".join([*opened.python(asked.fast), _call(asked)])
    inner = any(part.words or part.regions for part in (*asked.parts, *asked.negative))
    if inner and asked.task == "interpolation":
        return Said("# weights of words and regions beside an interpolation: in Python alone", python, files)
    if inner:
        command = ["mvader", "sample", "--prompts", PROMPTS, *opened.flags(asked.fast)]
        return Said(shlex.join(command), python, files, _line(asked))
    return Said(shlex.join(_command(asked, opened)), python, files)


def argument(part: Part) -> str:
    """A row as an argument of `mvader sample`, which has no weights of words and regions."""
    weight = "" if part.weight == 1 else f"@{_number(part.weight)}"
    if part.picture is not None:
        return f"{part.name}{weight}"
    text = str(part.text)
    # What could be read as a weight, a picture's name, a prefix or an option is said to be a text.
    doubtful = "@" in text or names_picture(text) or text.startswith(("text:", "image:", "-"))
    return f"text:{text}@{_number(part.weight)}" if doubtful else f"{text}{weight}"


def _command(asked: Asked, opened: Opened) -> list[str]:
    words = ["mvader", "sample", *(["--task", asked.task] if asked.task else [])]
    for part in asked.parts:
        words.append(argument(part))
    for part in asked.negative:
        words += ["--negative", argument(part)]
    for name, value in asked.options.items():
        words += [f"--{name}", _number(value)]
    words += ["--num-images", str(asked.num_images)]
    for name, value in _changed(asked, both="both").items():
        words += _flag(name, value)
    return words + opened.flags(asked.fast)


def _flag(name: str, value: Any) -> list[str]:
    if name == "balance":
        return ["--balance-attention" if value == "attention" else "--balance"]
    if isinstance(value, tuple):
        value = ",".join(map(_number, value))
    return [f"--{name.replace('_', '-')}", _number(value) if isinstance(value, float) else str(value)]


def _changed(asked: Asked, both: str | None) -> dict[str, Any]:
    """The settings that are not what is drawn with where nothing is said. both: what `site` then is."""
    defaults = SamplingSettings().changed(**FAST) if asked.fast else SamplingSettings()
    found = {
        field.name: getattr(asked.settings, field.name) for field in dataclasses.fields(SamplingSettings)
    }
    same = {"site": (None, both or "both"), "balance": (None, False), "strength": (asked.settings.strength,)}
    return {
        name: value
        for name, value in found.items()
        if value != getattr(defaults, name) and value not in same.get(name, ())
    }


def _line(asked: Asked) -> str:
    """The line of a file of prompts."""

    line: dict[str, Any] = {"id": "page", "prompt": rows(asked.parts)}
    if asked.task == "img2img":
        line["prompt"] = rows(tuple(part for part in asked.parts if part.text is not None))
        line["init_image"] = next(part.name for part in asked.parts if part.picture is not None)
        line["strength"] = asked.strength
    if asked.negative:
        line["negative"] = rows(asked.negative)
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in _changed(asked, None).items()}
    return json.dumps({**line, "num_images": asked.num_images, **settings}, ensure_ascii=False)


def rows(parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    """Parts as `Prompt.from_json` reads them."""
    return [_row(part) for part in parts]


def _row(part: Part) -> dict[str, Any]:
    weight = {} if part.weight == 1 else {"weight": part.weight}
    if part.text is not None:
        words = {one.words: one.weight for one in part.words}
        return {"text": part.text, **weight, **({"spans": words} if words else {})}
    regions = [{"mask": _mask(part, one), "weight": one.weight} for one in part.regions]
    return {"image": part.name, **weight, **({"regions": regions} if regions else {})}


def _call(asked: Asked) -> str:
    options = [f"num_images={asked.num_images}"]
    options += [f"{name}={value!r}" for name, value in _changed(asked, None).items()]
    negative = [f"negative=[{', '.join(map(_part, asked.negative))}]"] if asked.negative else []
    if asked.task is None:
        parts = f"[{', '.join(map(_part, asked.parts))}]"
        return f"pictures = pipe({', '.join([parts, *negative, *options])})"
    images = [repr(part.name) for part in asked.parts if part.picture is not None]
    texts = f"[{', '.join(_part(part) for part in asked.parts if part.text is not None)}]"
    task = [f"{name}={_number(value)}" for name, value in asked.options.items()]
    return (
        f"pictures = mv.tasks.{asked.task}({', '.join(['pipe', *images, texts, *negative, *task, *options])})"
    )


def _part(part: Part) -> str:
    inner = ""
    if part.words:
        inner = f", spans={ {one.words: one.weight for one in part.words} }"
    if part.regions:
        masks = ", ".join(f"({_mask(part, one)!r}, {_number(one.weight)})" for one in part.regions)
        inner = f", regions=[{masks}]"
    weight = "" if part.weight == 1 else f", {_number(part.weight)}"
    if part.text is not None:
        return f"mv.Text({part.text!r}{weight}{inner})"
    return f"mv.Image({part.name!r}{weight}{inner})"


def _mask(part: Part, region: Region) -> str:
    """The file's name of a painted region of a picture."""
    return f"{part.name.rpartition('.')[0]}-region-{region.mask[:6]}.png"


def _number(value: float) -> str:
    """A number as it is read again, and no longer than that."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
