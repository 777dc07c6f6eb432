"""How fast this machine reads, decodes, builds and loads, in records per second of one core.

Rates are per second of processor time of all threads together: what one core does, also on a machine
that is shared. The rates that are compared are measured side by side in one run.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import pathlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mvader_jax.data.batches import Shape
from mvader_jax.data.building.captions import IMAGE_SUFFIXES
from mvader_jax.data.building.catalogue import known
from mvader_jax.data.building.parts import TarPart, find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import captions_of, make_loader
from mvader_jax.data.sources import Records
from mvader_jax.data.sources.encoded import INFO, read_info
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer
from mvader_jax.train.objectives import Diffusion

#: Records a batch; large enough that the tokenizer works as in training.
BATCH = 64
#: MAGMA's image encoder: tokens of a picture and pixels a side.
IMAGE_TOKENS, ENCODER_SIZE = 144, 384


@dataclasses.dataclass(frozen=True)
class Rate:
    """`count` records in so many seconds of processor time, and on the clock."""

    what: str
    count: int
    cpu: float
    wall: float

    @property
    def per_core(self) -> float:
        return self.count / max(self.cpu, 1e-9)


def bench(path: str | os.PathLike[str], *, size: int = 512, seconds: float = 10.0) -> list[Rate]:
    """Measures what is at `path`, about `seconds` for each rate: img2dataset's tars (reading, Pillow's
    decoding, building), a built data set (decoding, loading at `size` pixels) or an encoded one (loading).

    Raises UserError if it is none of these.
    """
    root = pathlib.Path(path)
    if (root / INFO).is_file():
        return _encoded(root, seconds)
    if (root / "dataset_info.json").is_file():
        return _records(root, size, seconds)
    if any(isinstance(part, TarPart) for part in find_shards(root)):
        return _tars(root, seconds)
    raise UserError(f"{os.fspath(path)!r} holds no tars, no data set and no encoded set")


def lines(rates: list[Rate]) -> list[str]:
    """A table: rates, and each relative to the first."""
    width = max(len(rate.what) for rate in rates)
    return [f"{'':{width}}  a second of a core   of the first       records"] + [
        f"{rate.what:{width}}  {rate.per_core:18,.0f}  {rate.per_core / rates[0].per_core:12.2f}  {rate.count:12,}"
        for rate in rates
    ]


def _tars(root: pathlib.Path, seconds: float) -> list[Rate]:
    parts = [part for part in find_shards(root) if isinstance(part, TarPart)]
    data: list[bytes] = []

    def read() -> Iterator[int]:
        for part in parts:
            with tarfile.open(part.path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    content = file.read() if file else b""
                    if member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                        if len(data) < 512:
                            data.append(content)
                        yield 1

    reading = _measure("reading the tars", read(), seconds)
    pillow = _measure("Pillow decodes", _each(_pillow, data), seconds)
    with tempfile.TemporaryDirectory() as folder:
        start = (time.process_time(), time.monotonic())
        few = parts[
            : max(1, round(len(parts) * min(1.0, 4 * seconds * pillow.per_core / max(reading.count, 1))))
        ]
        report = build(
            few,
            pathlib.Path(folder) / "out",
            "laion_aesthetics",
            known("laion_aesthetics").filters,
        )
        cpu, wall = time.process_time() - start[0], time.monotonic() - start[1]
    return [reading, pillow, Rate("building", report.read, cpu, wall)]


def _records(root: pathlib.Path, size: int, seconds: float) -> list[Rate]:
    source = Stored(os.fspath(root), "train")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(source))[:512]
    data = [source.record(int(number), rng)["image"] for number in chosen]
    bare = _measure("bare decoder, whole pictures", _each(_decode, data), seconds)
    config = DataConfig(Records((os.fspath(root),)), image_size=size)
    tokenizer = _tokenizer(config)
    rates = [bare, _measure("Pillow's decoder", _each(_pillow, data), seconds)]
    for what, share in (("loader: decoded, cropped, tokenised", 0.0), ("loader, with image rows (0.2)", 0.2)):
        rates.append(_load(what, config, share, tokenizer, seconds))
    return rates


def _encoded(root: pathlib.Path, seconds: float) -> list[Rate]:
    info = read_info(root)
    if info.origin["source"] != Records().kind:
        raise UserError(
            f"{os.fspath(root)!r} was encoded from {info.origin['source']}; the rate is that of a built data set's"
        )
    config = DataConfig(Records(), precomputed=(os.fspath(root),), image_size=info.image_size)
    return [_load("loader: precomputed, tokenised", config, 0.0, _tokenizer(config), seconds)]


def _load(what: str, config: DataConfig, p_image: float, tokenizer: Tokenizer, seconds: float) -> Rate:
    shape = Shape(BATCH, image_tokens=IMAGE_TOKENS, encoder_size=ENCODER_SIZE)
    loader = make_loader(config, Diffusion(p_image=p_image), tokenizer, shape)
    loader.make(0)  # opens files
    # One thread: what is read ahead and not yet taken would cost time and not count.
    return _measure(what, (BATCH for step in itertools.count(1) if loader.make(step)), seconds)


def _measure(what: str, counts: Iterable[int], seconds: float) -> Rate:
    cpu, wall, total = time.process_time(), time.monotonic(), 0
    for count in counts:
        total += count
        if time.process_time() - cpu > seconds:
            break
    return Rate(what, total, time.process_time() - cpu, time.monotonic() - wall)


def _each(decode: Callable[[bytes], Any], data: list[bytes]) -> Iterator[int]:
    """Decodes one after the other without end; damaged ones do not count."""
    for content in itertools.cycle(data):
        try:
            decode(content)
        except Exception:  # damage of any kind
            yield 0
            continue
        yield 1


def _pillow(data: bytes) -> None:
    import PIL.Image

    PIL.Image.open(io.BytesIO(data)).convert("RGB")


def _decode(data: bytes) -> None:
    import simplejpeg

    simplejpeg.decode_jpeg(data, "RGB")


def _tokenizer(config: DataConfig) -> Tokenizer:
    return train_tokenizer(captions_of(config, 2000), 1000)
