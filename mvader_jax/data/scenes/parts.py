"""Scenes as files, like any data set."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from mvader_jax.data.building.admit import Sample
from mvader_jax.data.building.parts import Held, Part
from mvader_jax.data.scenes.captions import Language, caption
from mvader_jax.data.scenes.world import CANVAS, Split, render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import make_directory, sweep, write_file

PART_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class ScenePart:
    """Scenes [start, stop) of a split, as PNG with a full caption in each language."""

    seed: int
    start: int
    stop: int
    split: Split = "train"
    size: int = CANVAS
    languages: tuple[Language, ...] = ("en", "de")

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}-{self.start:08d}"

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        del problems
        for index, key in zip(range(self.start, self.stop), self.key_list(), strict=True):
            scene = scene_at(self.seed, index, self.split)
            rng = np.random.default_rng([self.seed, index])
            told = [caption(scene, rng, language) for language in self.languages]
            yield Sample(key, Held(_encoded(render(scene, self.size), "PNG")), None, {"caption": told})

    def key_list(self) -> list[str]:
        return [f"{self.split}-{self.seed}-{index:08d}" for index in range(self.start, self.stop)]

    def files(self) -> Iterable[str]:
        # The drawing itself may change from one version to the next.
        first = next(iter(self.samples([]))).image
        assert first is not None
        return [repr(self), hashlib.sha256(first()).hexdigest()]

    def columns(self) -> set[str] | None:
        return {"caption"}


def find_scenes(count: int, seed: int = 0) -> list[Part]:
    """The parts of the first `count` training scenes of a seed."""
    return [ScenePart(seed, at, min(at + PART_SIZE, count)) for at in range(0, count, PART_SIZE)]


def write_files(
    directory: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    size: int = CANVAS,
    format: Literal["png", "jpg"] = "png",
) -> int:
    """Scenes as a folder of pictures and captions, such as `image_captions` reads: 00000000.png beside
    00000000.txt, a line a language. Returns how many files were not there yet.

    Raises UserError where the folder cannot be written or holds anything else.
    """
    root = make_directory(directory)
    other = UserError(f"{os.fspath(directory)!r} is not empty; name a new folder")
    names = {f"{index:08d}.{ending}" for index in range(count) for ending in (format, "txt")}
    written = 0
    try:
        sweep(root)
        if {entry.name for entry in root.iterdir()} - names:
            raise other
        for index, sample in enumerate(ScenePart(seed, 0, count, split, size).samples([])):
            assert sample.image is not None
            picture = sample.image()
            if format != "png":
                picture = _encoded(render(scene_at(seed, index, split), size), "JPEG", quality=95)
            told = "".join(f"{line}\n" for line in sample.metadata["caption"]).encode()
            for path, data in (
                (root / f"{index:08d}.{format}", picture),
                (root / f"{index:08d}.txt", told),
            ):
                if not path.exists():
                    write_file(path, data)
                    written += 1
                elif path.read_bytes() != data:
                    raise other
    except OSError as error:
        raise UserError(f"cannot write into {os.fspath(directory)!r}: {error.strerror or error}") from None
    return written


def _encoded(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()
