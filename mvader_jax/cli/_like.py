"""`mvader sample --like`: a picture's own prompt and settings under the flags that are given beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from mvader_jax.errors import UserError
from mvader_jax.sampling.drawing import LOADED, Drawing, read_drawing
from mvader_jax.sampling.settings import FAST, NAMES, Changes

#: What says of a drawing that it is another one.
_NOT_BESIDE = ("prompts", "batch", "task", "fraction")


def read_like(path: Path, flags: Mapping[str, Any], given: Collection[str]) -> Drawing:
    """What `--like` draws: the picture's own where no flag says otherwise.

    flags: every flag's value by its name; given: those that stand on the command line.
    Raises UserError for one that does nothing beside it, and for a bundle of the hub that is not named again.
    """
    for name in _NOT_BESIDE:
        if name in given:
            raise UserError(
                f"--like takes its prompt and what it starts from of the picture; leave out --{name}"
            )
    for name in ("span", "region"):
        if name in given and "parts" not in given and "negative" not in given:
            raise UserError(
                f"--{name} counts parts that are given with it; give the prompt's parts beside --like"
            )
    drawing = read_drawing(path, root=".")
    if "strength" in given and not drawing.init_images:
        raise UserError(f"--strength does nothing: {str(path)!r} was drawn from noise alone")
    if "negative_strength" in given and drawing.negative is None and "negative" not in given:
        raise UserError(f"--negative-strength does nothing: {str(path)!r} has no negative prompt")
    loaded = {**drawing.loaded, **{name: flags[name] for name in LOADED if name in given}}
    if "bundle" not in given and str(loaded.get("bundle", "")).startswith("hf:"):
        raise UserError(
            f"{str(path)!r} was drawn by {loaded['bundle']!r}: nothing is fetched that a picture names; name it with --bundle"
        )
    if "lora" in loaded and "lora" not in given:
        names = ", ".join(map(repr, loaded["lora"]))
        raise UserError(f"{str(path)!r} was drawn with the LoRA {names}: name its file with --lora")
    if "lora" in given:
        loaded["lora"] = tuple(flags["lora"])
    changes = {name: flags[name] for name in NAMES if name in given}
    if flags["fast"] and not drawing.loaded.get("fast"):
        changes = {**FAST, **changes}
    meant = {name for name in ("balance", "balance_attention") if name in given}
    if meant:
        changes["balance"] = "attention" if "balance_attention" in meant else True
    settings = drawing.settings.changed(**cast(Changes, changes))
    # Numbers of a seed are counted from 0, as ever, where it is another seed or they are several.
    index = 0 if {"seed", "num_images"} & set(given) else drawing.index
    return dataclasses.replace(
        drawing, settings=settings, index=flags["first"] if "first" in given else index, loaded=loaded
    )
