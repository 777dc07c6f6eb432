"""What a page asks for as a command line and as a Python call, and the files that these name."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from mvader_jax.images.names import names_picture
from mvader_jax.sampling.settings import FAST, SamplingSettings
from mvader_jax.web.asked import Asked, Part, Region


@dataclasses.dataclass(frozen=True)
class Opened:
    """What draws: the options of `mvader web`, which are those of `mvader sample`."""

    bundle: str = "tiny"
    dtype: str = "float32"
    frozen_dtype: str | None = None
    mesh: str = ""
    raw: bool = False
    lora: tuple[str, ...] = ()

    def flags(self, fast: bool) -> list[str]:
        """As arguments."""
        flags = ["--fast"] * fast + ["--raw"] * self.raw
        for name in ("bundle", "dtype", "frozen_dtype", "mesh"):
            value = getattr(self, name)
            if value != getattr(Opened, name):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags + [word for file in self.lora for word in ("--lora", file)]

    def python(self, fast: bool) -> list[str]:
        """As lines of Python that make `pipe`."""
        options = [repr(self.bundle)]
        options += [f"fast={fast}"] * fast + [f"raw={self.raw}"] * self.raw
        options += [f"dtype={self.dtype!r}"] * (self.dtype != Opened.dtype)
        options += [f"frozen_dtype={self.frozen_dtype!r}"] * (self.frozen_dtype is not None)
        options += [f"lora={list(self.lora)!r}"] * bool(self.lora)
        lines = ["import mvader_jax as mv"]
        if self.mesh:
            lines.append("from mvader_jax.parallel.mesh import open_mesh")
            options.append(f"mesh=open_mesh({self.mesh!r})")
        return [*lines, "", f"pipe = mv.Pipeline.load({', '.join(options)})"]


@dataclasses.dataclass(frozen=True)
class Said:
    """command, python: to be copied; files: {name: id of a picture} that they name."""

    command: str
    python: str
    files: dict[str, str]


def say(asked: Asked, opened: Opened) -> Said:
    """Both ways of drawing the same."""
    files: dict[str, str] = {}
    for part in (*asked.parts, *asked.negative):
        if part.picture is not None:
            files[part.name] = part.picture
        files |= {_where(part, region): region.mask for region in part.regions if region.mask is not None}
    python = "\n".join([*opened.python(asked.fast), _call(asked)])
    return Said(shlex.join(_command(asked, opened)), python, files)


def argument(part: Part) -> str:
    """A row as an argument of `mvader sample`; its words and regions are in flags."""
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
    for side, parts in (("", asked.parts), ("n", asked.negative)):
        for number, part in enumerate(parts, start=1):
            for one in part.words:
                words += ["--span", f"{side}{number}:{one.words}@{_number(one.weight)}"]
            for region in part.regions:
                words += ["--region", f"{side}{number}:{_where(part, region)}@{_number(region.weight)}"]
    for name, value in asked.options.items():
        words += [f"--{name}", _number(value)]
    words += ["--num-images", str(asked.num_images), *(["--first", str(asked.first)] if asked.first else [])]
    for name, value in _changed(asked).items():
        words += _flag(name, value)
    return words + opened.flags(asked.fast)


def _flag(name: str, value: Any) -> list[str]:
    if name == "balance":
        return ["--balance-attention" if value == "attention" else "--balance"]
    if isinstance(value, tuple):
        value = ",".join(map(_number, value))
    return [f"--{name.replace('_', '-')}", _number(value) if isinstance(value, float) else str(value)]


def _changed(asked: Asked) -> dict[str, Any]:
    """The settings that are not what is drawn with where nothing is said."""
    defaults = SamplingSettings().changed(**FAST) if asked.fast else SamplingSettings()
    fields = [field.name for field in dataclasses.fields(SamplingSettings)]
    found = {name: getattr(asked.settings, name) for name in fields}
    same = {"site": (None, "both"), "balance": (None, False), "strength": (asked.settings.strength,)}
    return {
        name: value
        for name, value in found.items()
        if value != getattr(defaults, name) and value not in same.get(name, ())
    }


def _call(asked: Asked) -> str:
    options = [f"num_images={asked.num_images}"] + [f"first={asked.first}"] * (asked.first > 0)
    options += [f"{name}={value!r}" for name, value in _changed(asked).items()]
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
        places = [(one.box or _where(part, one), one.weight) for one in part.regions]
        inner = f", regions={places!r}"
    weight = "" if part.weight == 1 else f", {_number(part.weight)}"
    if part.text is not None:
        return f"mv.Text({part.text!r}{weight}{inner})"
    return f"mv.Image({part.name!r}{weight}{inner})"


def _where(part: Part, region: Region) -> str:
    """A box, or the file's name of a painted region."""
    if region.box is not None:
        return ",".join(map(_number, region.box))
    return f"{part.name.rpartition('.')[0]}-region-{str(region.mask)[:6]}.png"


def _number(value: float) -> str:
    """A number as it is read again, and no longer than that."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
