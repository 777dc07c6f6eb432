"""What a pipeline draws: a list of Pillow images that a notebook shows as a grid."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.images.inputs import Inputs
from mvader_jax.images.sheet import grid

#: The key of `PIL.Image.Image.info`, and of a PNG's text, under which a picture keeps what it was drawn with; and of the
#: pictures that it was drawn from (`images.inputs`).
DRAWN, INPUTS = "mvader", "mvader-inputs"


class Pictures(list[PIL.Image.Image]):
    """Pictures in the order of their numbers; a list like any other, shown as a grid where it is displayed.

    Each picture keeps its prompt, seed and settings in `picture.info["mvader"]`.
    """

    def grid(
        self, columns: int | None = None, labels: Sequence[str] | None = None, *, gap: int = 2
    ) -> PIL.Image.Image:
        """All of them as one picture. Arguments and errors as `images.sheet.grid`."""
        return grid(self, columns, labels, gap=gap)

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Writes each picture and their grid as PNG with its settings in it, and a row each in `manifest.jsonl`, as
        `mvader sample` does; returns the paths, the grid last. Nothing that is there is replaced.

        Raises UserError where the directory cannot be written, or there are no pictures.
        """
        if not isinstance(directory, (str, os.PathLike)):
            raise UserError(f"a directory is named by {directory!r:.80}; expected a string or a path")
        from mvader_jax.sampling.output import write_pictures
        from mvader_jax.storage.atomic import local

        return write_pictures(local(directory), dict(enumerate(self)), {})

    @overload
    def __getitem__(self, index: SupportsIndex) -> PIL.Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PIL.Image.Image | Pictures:
        found = super().__getitem__(index)
        return Pictures(found) if isinstance(found, list) else found

    def __repr__(self) -> str:
        sizes = sorted({picture.size for picture in self})
        of = " and ".join(f"{width} x {height}" for width, height in sizes)
        return f"<{len(self)} picture{'s' * (len(self) != 1)}{' of ' * bool(sizes)}{of}>"

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        data = io.BytesIO()
        self.grid().save(data, format="PNG")
        return data.getvalue()


class NotFiniteError(UserError):
    """Some pictures hold NaN or infinity. pictures: {its number: the picture} of those that do not; of many prompts
    {(number of the prompt from 1, number of the picture from 0): the picture}."""

    def __init__(self, wanted: Iterable[Any], pictures: Mapping[Any, PIL.Image.Image]) -> None:
        missing = [number for number in wanted if number not in pictures]
        bad = [f"{n[1]} of prompt {n[0]}" if isinstance(n, tuple) else str(n) for n in missing]
        super().__init__(not_finite(f"picture{'s' * (len(bad) > 1)} {', '.join(bad)}"))
        self.pictures = dict(pictures)


def not_finite(what: str) -> str:
    """The sentence that says so."""
    return (
        f"{what}: NaN or infinity arose on the way, so nothing is shown; the guidance scale may be too large, "
        "or the bundle's weights are damaged"
    )


def drawn_with(picture: Any) -> dict[str, Any]:
    """What a picture was drawn with, as JSON values; nothing where it does not say."""
    said = getattr(picture, "info", {}).get(DRAWN)
    return dict(said) if isinstance(said, dict) else {}


def kept(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a PNG keeps of a picture's `info`, so that `read_drawing` reads it; nothing where it does not say."""
    own, inputs = info.get(DRAWN), info.get(INPUTS)
    return (
        {DRAWN: own, INPUTS: inputs.entries} if isinstance(own, dict) and isinstance(inputs, Inputs) else {}
    )
