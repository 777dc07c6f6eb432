"""Fixed shapes out of records: which rows of a batch this process makes, and how they are read into arrays.

An objective makes the batch of a step's number of these parts (`train/objectives/`); NumPy throughout.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import BFloat16, Float32, UInt8

from mvader_jax.data.buckets import Buckets
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import Size, decode, encoder_pixels
from mvader_jax.data.order import Damage, Reader, Record
from mvader_jax.data.sources.encoded import BF16, EncodedShapes
from mvader_jax.errors import UserError

Batch = dict[str, Any]
BatchFn = Callable[[int], tuple[Batch, list[Damage]]]
#: Where the records of each step are read: all in one order, or a bucket of pictures of one shape at a time.
Feed = Reader | Buckets


@dataclasses.dataclass(frozen=True)
class Shape:
    """The part of every global batch that this process makes.

    batch_size: samples of the global batch; groups: into how many groups it is cut for the row shares;
    process_index, process_count: this process makes the process_index-th of equal runs of groups.
    image_tokens, encoder_size: positions an image prompt takes, and the side of the encoder's input; 0
    for an embedder without images.
    """

    batch_size: int
    groups: int = 1
    process_index: int = 0
    process_count: int = 1
    image_tokens: int = 0
    encoder_size: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.groups or self.groups % self.process_count:
            raise UserError(
                f"a batch of {self.batch_size} does not divide into {self.groups} groups over "
                f"{self.process_count} processes"
            )

    @property
    def rows(self) -> int:
        return self.batch_size // self.process_count

    def positions(self, number: int) -> range:
        """Positions in a reader that this process's rows of its batch `number` take."""
        start = number * self.batch_size + self.process_index * self.rows
        return range(start, start + self.rows)


def pixel_batch(reader: Feed, shape: Shape, config: DataConfig) -> BatchFn:
    """{"pixels": uint8 [B, H, W, 3]}: a quarter of the bytes to the device, which makes floats of them."""
    return functools.partial(_pixel_batch, reader, shape, config)


def _pixel_batch(reader: Feed, shape: Shape, config: DataConfig, step: int) -> tuple[Batch, list[Damage]]:
    canvas = Canvas(shape.rows)
    _, damage = read(reader, shape, step, config, canvas=canvas)
    return canvas.batch(), damage


def read(
    reader: Feed,
    shape: Shape,
    step: int,
    config: DataConfig,
    needs: Sequence[str] = (),
    canvas: Canvas | None = None,
) -> tuple[list[Record], list[Damage]]:
    source, batch, size = reader.at(step)
    records: list[Record] = []
    damage: list[Damage] = []
    for row, position in enumerate(shape.positions(batch)):
        record, passed = read_one(source, position, config, size=size, needs=needs)
        records.append(record if canvas is None else canvas.take(row, record))
        damage += passed
    return records, damage


def read_one(
    reader: Reader,
    position: int,
    config: DataConfig,
    check: Callable[[Record], Record] = lambda record: record,
    size: Size | None = None,
    needs: Sequence[str] = (),
) -> tuple[Record, list[Damage]]:
    """The record at a position. needs: parts that the batch takes of it; where a precomputed record lacks
    one, its picture is read."""
    # The crop's choices are apart from the source's, which made the caption from the same position.
    chance = config.crop == "random" or config.flip > 0
    rng = reader.rng(position, "decode") if chance else None
    sides = size or (config.image_size, config.image_size)

    def finish(record: Record) -> Record:
        if "picture" in record and not set(needs) <= record.keys():
            record = {**record, "image": record["picture"]()}
        return decode(check(record), config, rng, sides)

    return reader.read(position, finish)


class Canvas:
    """The pictures of a batch, moved into its array one by one: the decoder's memory serves the next one."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._pixels: UInt8[np.ndarray, "B H W 3"] | None = None

    def take(self, row: int, record: Record) -> Record:
        """The record, its picture a view of row `row`."""
        if "image" not in record:
            return record
        if self._pixels is None:
            self._pixels = np.empty((self._rows, *record["image"].shape), np.uint8)
        self._pixels[row] = record["image"]
        return {**record, "image": self._pixels[row]}

    def batch(self) -> dict[str, UInt8[np.ndarray, "B H W 3"]]:
        """{"pixels": uint8 [B, H, W, 3]}, once every row was taken."""
        assert self._pixels is not None
        return {"pixels": self._pixels}


def moments(
    records: Sequence[Record], shape: tuple[int, ...]
) -> dict[str, BFloat16[np.ndarray, "{len(records)} {shape[1]} {shape[2]} {shape[3]}"]]:
    """Mean and log variance of latents; zeros for records without, whose pixels come beside."""
    out = np.zeros((2, len(records), *shape[1:]), BF16)
    for row, record in enumerate(records):
        if "latents" in record:
            out[:, row] = record["latents"]
    return {"latent_mean": out[0], "latent_logvar": out[1]}


def states(
    records: Sequence[Record], shape: tuple[int, ...], kind: str
) -> BFloat16[np.ndarray, "{len(records)} _ {shape[3]}"]:
    """Hidden states of records' prompts of a kind, "image" or "caption"; zeros for records without."""
    images, words, _, width = shape
    here = slice(images) if kind == "image" else slice(images, images + words)
    out = np.zeros((len(records), here.stop - (here.start or 0), width), BF16)
    for row, record in zip(out, records, strict=True):
        if "states" in record:
            row[:] = record["states"][here]
    return out


def encoder_input(
    records: Sequence[Record], shape: Shape, features: tuple[int, ...] | None
) -> Float32[np.ndarray, "{len(records)} h w 3"] | BFloat16[np.ndarray, "{len(records)} T C"]:
    """[N, H, W, 3] for the image encoder, or its features [N, T, C] where they are known."""
    if features is None:
        return encoder_pixels([record["image"] for record in records], shape.encoder_size)
    if features[0] != shape.image_tokens:
        raise UserError(
            f"the precomputed features are {features[0]} tokens per picture; the model has {shape.image_tokens}"
        )
    out = np.zeros((len(records), *features), BF16)
    for row, record in zip(out, records, strict=True):
        if "features" in record:  # an interleaved sample's is not used
            row[:] = record["features"]
    return out


def abstract_pixels(rows: int, side: int) -> jax.ShapeDtypeStruct:
    """Target pictures, uint8 [rows, side, side, 3]."""
    return jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8)


def abstract_encoder_input(rows: int, shape: Shape, encoded: EncodedShapes) -> jax.ShapeDtypeStruct:
    """What `encoder_input` makes of so many records."""
    if encoded.features is not None:
        return jax.ShapeDtypeStruct((rows, *encoded.features), jnp.bfloat16)
    return jax.ShapeDtypeStruct((rows, shape.encoder_size, shape.encoder_size, 3), jnp.float32)
