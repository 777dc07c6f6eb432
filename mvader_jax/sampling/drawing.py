"""What a picture was drawn with: kept in it, read from it, and drawn again.

drawing = mv.read_drawing("outputs/00001.png")
drawing.prompt.elements, drawing.settings           # Text and Image elements; SamplingSettings
drawing.draw(pipe)                                  # the same picture
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import PIL.Image

from mvader_jax.bounds import NonNegativeInt
from mvader_jax.errors import UserError
from mvader_jax.images.inputs import Inputs, restored, same_names
from mvader_jax.images.png import read_png_metadata, texts
from mvader_jax.prompt.elements import ImageSource, Prompt
from mvader_jax.sampling.pictures import DRAWN, INPUTS, Pictures
from mvader_jax.sampling.settings import NAMES, Changes, SamplingSettings
from mvader_jax.settings import convert

if TYPE_CHECKING:
    from mvader_jax.sampling.attention import Attention
    from mvader_jax.sampling.pipeline import Pipeline

#: The most characters that are read of what a picture says it was drawn with.
_LONGEST = 1 << 20
#: How the weights of a prompt are meant: all its fields but its elements.
_MEANING = tuple(field.name for field in dataclasses.fields(Prompt) if field.name != "elements")
#: What `Pipeline.load` was called with.
LOADED: dict[str, type] = {
    "bundle": str,
    "dtype": str,
    "frozen_dtype": str,
    "raw": bool,
    "fast": bool,
    "lora": list,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A prompt and how it is drawn.

    prompt, negative: None for the null prompt. settings: its seed is one number where a picture says it.
    index: the picture's number under its seed. init_images, shares: what sampling started from, as
    `Pipeline.__call__` takes them. loaded: what drew it, as `Pipeline.load` takes it: "bundle", "dtype", "fast", ...
    """

    prompt: Prompt | None
    settings: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    negative: Prompt | None = None
    index: int = 0
    init_images: tuple[ImageSource, ...] = ()
    shares: tuple[float, ...] | None = None
    loaded: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def draw(self, pipe: Pipeline, *, num_images: int = 1, **options: Any) -> Pictures:
        """The picture again, of a pipeline that was loaded as `loaded` says; bit for bit on the same machine.

        options: as `Pipeline.__call__` takes them, in place of its own. Raises UserError as that does, and where a picture
        that it was drawn from is not kept.
        """
        given: dict[str, Any] = {"negative": self.negative, "first": self.index}
        if self.init_images:
            given |= {"init_image": list(self.init_images), "shares": self.shares}
        return pipe(self.prompt, self.settings, num_images=num_images, **{**given, **options})

    def attend(self, pipe: Pipeline, *, num_images: int = 1) -> Attention:
        """The same, and the attention that its elements get (`Pipeline.attend`); of what is drawn from noise."""
        assert self.prompt is not None and not self.init_images
        return pipe.attend(
            self.prompt, self.settings, negative=self.negative, first=self.index, num_images=num_images
        )

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Its pictures and masks: the prompt's, the negative prompt's, and what it started from."""
        prompts = [one.pictures for one in (self.prompt, self.negative) if one is not None]
        return Inputs([*(source for sources in prompts for source in sources), *self.init_images])

    def note(self, seed: int, index: int, loaded: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a picture of it keeps in its `info`. loaded: what drew it, in place of its own."""
        made_by = self.loaded if loaded is None else loaded
        return {DRAWN: {**self.recorded, **made_by, "seed": seed, "index": index}, INPUTS: self.inputs}

    @functools.cached_property
    def recorded(self) -> dict[str, Any]:
        """All but the inputs and what drew it, as JSON values."""
        meant, away = self._meaning(self.prompt), self._meaning(self.negative)
        settings = self.settings.changed(**{name: meant[name] for name in _MEANING if name in NAMES})
        other = {name: value for name, value in away.items() if value != meant[name]}
        record: dict[str, Any] = {
            "prompt": [] if self.prompt is None else self.prompt.to_json(),
            "negative": [] if self.negative is None else self.negative.to_json(),
            **settings.recorded(),
            **{name: value for name, value in meant.items() if name not in NAMES and value is not None},
            **({"negative_options": other} if other and self.negative is not None else {}),
        }
        if self.init_images:
            record["init_image"] = same_names(self.init_images)
            record |= {} if len(self.init_images) == 1 else {"shares": list(self.shares or ())}
        return record

    def _meaning(self, prompt: Prompt | None) -> dict[str, Any]:
        """How a prompt's weights act: the settings say, or itself."""
        own = Prompt.of("-") if prompt is None else prompt
        said = {name: getattr(self.settings, name, None) for name in _MEANING}
        found = {name: getattr(own, name) if said[name] is None else said[name] for name in _MEANING}
        # The default is not told.
        return found | ({"long_prompts": None} if found["long_prompts"] == "cut" else {})


def read_drawing(
    picture: str | os.PathLike[str] | bytes | PIL.Image.Image, *, root: str | os.PathLike[str] | None = None
) -> Drawing:
    """What a picture that mvader drew says it was drawn with.

    picture: a PNG's path or bytes, or a Pillow picture that was drawn, or opened from such a PNG.
    root: where the paths of its input pictures begin, of which those are read that hold what they held; None opens no file
    that a picture names. An input that is neither there nor kept in the picture raises UserError when it is drawn.
    Raises UserError for what says nothing of this kind, and for what is damaged.
    """
    name = repr(os.fspath(picture)) if isinstance(picture, (str, os.PathLike)) else "the picture"
    if isinstance(picture, PIL.Image.Image):
        if isinstance(picture.info.get(DRAWN), dict):  # drawn in this process
            inputs = picture.info.get(INPUTS)
            return _drawing(picture.info[DRAWN], inputs.sources if isinstance(inputs, Inputs) else [])
        said = texts(picture)
    elif isinstance(picture, (str, os.PathLike, bytes)):
        said = read_png_metadata(picture)
    else:
        raise UserError(
            f"a picture is of type {type(picture).__name__}; expected a PNG's path or bytes, or one of Pillow's"
        )
    if DRAWN not in said:
        ours = said.get("Software") == "mvader-jax"
        older = " (a sheet of several, or an earlier version wrote it)" if ours else ""
        raise UserError(
            f"{name} does not say how to draw it again: it is no single picture that mvader drew{older}"
        )
    try:
        record, entries = _json(said[DRAWN], _LONGEST), _json(said.get(INPUTS, "[]"), 8 * _LONGEST)
        return _drawing(record, restored(entries, root))
    except UserError as error:
        raise UserError(f"{name} does not say rightly how it was drawn: {error}") from None


def _json(text: str, longest: int) -> Any:
    if len(text) > longest:
        raise UserError(f"it says {len(text):,} characters; the limit is {longest:,}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("it is no JSON") from None


def _drawing(record: Any, inputs: Sequence[Any]) -> Drawing:
    """The inverse of `recorded`. Raises UserError for anything else."""
    if not isinstance(record, dict):
        raise UserError("it is no JSON object")
    other = record.get("negative_options", {})
    if not isinstance(other, dict) or not set(other) <= set(_MEANING):
        raise UserError("its negative_options are unknown")
    meant = {name: record[name] for name in _MEANING if record.get(name) is not None}
    # Where the two prompts differ each says it itself.
    changes = {name: record[name] for name in NAMES if name in record and name not in other}
    settings = SamplingSettings().changed(**cast(Changes, changes))
    rest = iter(inputs)
    prompt = _prompt(record.get("prompt"), rest, meant)
    kept = {name: value for name, value in {**meant, **other}.items() if value is not None}
    negative = _prompt(record.get("negative"), rest, kept)
    init, shares = record.get("init_image") or [], record.get("shares")
    init_images = tuple(rest)
    if not isinstance(init, list) or len(init_images) != len(init):
        raise UserError("it names other pictures than it holds")
    if shares is not None:
        shares = convert(tuple[float, ...], shares, "shares")
    return Drawing(
        prompt,
        settings,
        negative,
        convert(NonNegativeInt, record.get("index", 0), "index"),
        init_images,
        shares,
        {name: _loaded(record, name) for name in LOADED if name in record},
    )


def _loaded(record: Mapping[str, Any], name: str) -> Any:
    if type(record[name]) is not LOADED[name]:
        raise UserError(f"{name} is {record[name]!r:.80}; expected a {LOADED[name].__name__}")
    return record[name]


def _prompt(value: Any, pictures: Any, options: Mapping[str, Any]) -> Prompt | None:
    if value in (None, []):
        return None
    if not isinstance(value, list):
        raise UserError("its prompt is no list")
    return Prompt.from_json(value, pictures=pictures, **options)
