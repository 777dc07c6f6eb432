"""What a picture was drawn with as what a page asks for: the inverse of drawing it."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.images.inputs import LostPicture
from mvader_jax.prompt.elements import Element, Prompt, Text
from mvader_jax.sampling.drawing import Drawing
from mvader_jax.sampling.settings import STRENGTH
from mvader_jax.web.asked import Asked, Part, Region, Words
from mvader_jax.web.store import Store

#: The id of a picture that is not in the file it was drawn into: the row says so, and takes another.
LOST = "lost"


def restored(drawing: Drawing, store: Store) -> Asked:
    """The rows and settings of a picture; what it holds of its input pictures goes into the store.

    Raises UserError for what the page has no controls for: factors by layer, and more than two pictures to start from.
    """
    prompts = [one for one in (drawing.prompt, drawing.negative) if one is not None]
    if any(one.decoder_factors is not None or one.cross_attention_factors is not None for one in prompts):
        raise UserError("the picture was drawn with factors by layer, which the page cannot show; use --like")
    task = (None, "img2img", "interpolation", "")[min(len(drawing.init_images), 3)]
    if task == "":
        raise UserError(
            "the picture started from more than two pictures, which the page cannot show; use --like"
        )
    starts = tuple(_picture(source, store) for source in drawing.init_images)
    own = drawing.prompt or Prompt.of("-")
    settings = drawing.settings.changed(
        site=drawing.settings.site or own.site,
        balance=own.balance if drawing.settings.balance is None else drawing.settings.balance,
        strength=None,
    )
    value: dict[str, Any] = {
        "parts": (*starts, *_parts(drawing.prompt, store)),
        "negative": _parts(drawing.negative, store),
        "settings": settings,
        "first": drawing.index,
        "task": task,
        "strength": STRENGTH if drawing.settings.strength is None else drawing.settings.strength,
        "fraction": 0.5 if not drawing.shares else drawing.shares[-1],
        "fast": bool(drawing.loaded.get("fast")),
    }
    return Asked(**value)


def _parts(prompt: Prompt | None, store: Store) -> tuple[Part, ...]:
    return () if prompt is None else tuple(_part(element, store) for element in prompt.elements)


def _part(element: Element, store: Store) -> Part:
    if isinstance(element, Text):
        words = tuple(Words(words, factor) for words, factor in element.span_weights)
        return Part(text=element.text, weight=element.weight, words=words)
    regions = tuple(
        Region(None, factor, where)
        if isinstance(where, tuple)
        else Region(store.add(np.stack([where] * 3, axis=-1)).id, factor)
        for where, factor in element.checked_regions
    )
    picture = _picture(element.image, store)
    return Part(picture=picture.picture, name=picture.name, weight=element.weight, regions=regions)


def _picture(source: object, store: Store) -> Part:
    if isinstance(source, LostPicture):
        return Part(picture=LOST, name=source.name or "picture.png")
    return Part(picture=store.add(source).id)
