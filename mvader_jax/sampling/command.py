"""A drawing as the command line that draws it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Element, Image, Prompt, Text
from mvader_jax.prompt.parse import parse_part
from mvader_jax.sampling.drawing import Drawing
from mvader_jax.sampling.settings import FAST, STRENGTH, SamplingSettings

#: Settings whose flags have their names, and a value.
_VALUED = (
    *("steps", "sampler", "guidance_scale", "negative_strength", "long_prompts", "height", "width", "eta"),
    *("guidance_interval", "reuse"),
)


def command(drawing: Drawing) -> list[str] | None:
    """`mvader sample` with its parts and flags; None where no argument says what it holds: pictures and masks that are no
    files, factors."""
    try:
        inside = [*_within(drawing.prompt, ""), *_within(drawing.negative, "n")]
        parts = _parts(drawing.prompt)
        negative = [word for part in _parts(drawing.negative) for word in ("--negative", part)]
        started = _start(drawing)
    except UserError:
        return None
    if drawing.prompt is None and not started:
        return None
    pictures = [image_argument(source) for source in drawing.init_images]
    return ["mvader", "sample", *started, *pictures, *parts, *negative, *inside, *_flags(drawing)]


def _within(prompt: Prompt | None, side: str) -> list[str]:
    """The flags of words and boxes. Raises UserError for masks, which are no files by now."""
    found = []
    for number, element in enumerate(prompt.elements if prompt else (), start=1):
        if isinstance(element, Text):
            for words, factor in element.span_weights:
                found += ["--span", f"{side}{number}:{words}@{factor!r}"]
        else:
            for where, factor in element.checked_regions:
                if not isinstance(where, tuple):
                    raise UserError("no flag names a mask that is no file")
                found += ["--region", f"{side}{number}:{','.join(map(repr, where))}@{factor!r}"]
    return found


def part_of(element: Element) -> str:
    """The argument that `parse_part` reads as this element. Raises UserError where there is none."""
    bare = element.text if isinstance(element, Text) else image_argument(element.image)
    weight = "" if element.weight == 1 else f"@{element.weight!r}"
    for argument in (f"{bare}{weight}", f"{bare}@1.0", f"text:{bare}{weight}", f"text:{bare}@1.0"):
        if _reads_as(argument, element):
            return argument
    raise UserError("no argument says this")


def image_argument(source: object) -> str:
    """Raises UserError for a picture that is no file."""
    if not isinstance(source, str):
        raise UserError("no argument names a picture that is no file")
    return source if isinstance(_parsed(source), Image) else f"image:{source}"


def _parsed(argument: str) -> Element | None:
    try:
        return parse_part(argument)
    except UserError:
        return None


def _reads_as(argument: str, element: Element) -> bool:
    bare = replace(element, spans=None) if isinstance(element, Text) else replace(element, regions=())
    return not argument.startswith("-") and _parsed(argument) == bare


def _parts(prompt: Prompt | None) -> list[str]:
    if prompt is None:
        return []
    if prompt.decoder_factors is not None or prompt.cross_attention_factors is not None:
        raise UserError("no flag says factors")
    return [part_of(element) for element in prompt.elements]


def _start(drawing: Drawing) -> list[str]:
    """The task that starts from its pictures."""
    if not drawing.init_images:
        return []
    task = {1: "img2img", 2: "interpolation"}.get(len(drawing.init_images))
    texts: Iterable[Element] = drawing.prompt.elements if drawing.prompt else ()
    if task is None or any(isinstance(one, Image) for one in texts):
        raise UserError("no task starts so")
    strength, shares = drawing.settings.strength, drawing.shares
    found = ["--task", task] + ([] if strength in (None, STRENGTH) else ["--strength", repr(strength)])
    return found if task == "img2img" or shares is None else [*found, "--fraction", repr(shares[1])]


def _flags(drawing: Drawing) -> list[str]:
    settings, loaded = drawing.settings, drawing.loaded
    found = ["--fast"] if loaded.get("fast") else []
    usual = SamplingSettings().changed(**(FAST if loaded.get("fast") else {}))
    for name in _VALUED:
        value = getattr(settings, name)
        if value is not None and value != getattr(usual, name):
            shown = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
            found += [f"--{name.replace('_', '-')}", shown]
    own = drawing.prompt or Prompt.of("-")
    site, balance = settings.site or own.site, own.balance if settings.balance is None else settings.balance
    found += [] if site == "both" else ["--site", site]
    found += {False: [], True: ["--balance"], "attention": ["--balance-attention"]}[balance]
    seeds = settings.seed if isinstance(settings.seed, tuple) else (settings.seed,)
    found += [
        "--seed",
        ",".join(map(str, seeds)),
        *(["--first", str(drawing.index)] if drawing.index else []),
    ]
    found += ["--num-images", "1"]
    for name, usually in (("bundle", "tiny"), ("dtype", "float32"), ("frozen_dtype", None)):
        if loaded.get(name, usually) != usually:
            found += [f"--{name.replace('_', '-')}", loaded[name]]
    return [*found, *(["--raw"] if loaded.get("raw") else [])]
