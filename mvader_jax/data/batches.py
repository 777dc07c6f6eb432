"""What one step of each objective reads: a function of the step's number, of fixed shapes, in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from mvader_jax.data.buckets import Buckets
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import Size, decode, encoder_pixels
from mvader_jax.data.order import Damage, DamagedRecord, Reader, Record
from mvader_jax.data.prompts import caption_rows, captioning_rows, image_rows
from mvader_jax.data.rows import IMAGE, INTERLEAVED, interleaved_before, kinds, row_layout
from mvader_jax.data.sources.encoded import BF16, encoded_shapes
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Image, Text
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer

Objective = Literal["vae", "captioning", "contrastive", "diffusion"]
Batch = dict[str, Any]
BatchFn = Callable[[int], tuple[Batch, list[Damage]]]
#: What has the records of a run's steps.
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

    def make(step: int) -> tuple[Batch, list[Damage]]:
        canvas = _Canvas(shape.rows)
        _, damage = _read(reader, shape, step, config, canvas=canvas)
        return canvas.batch(), damage

    return make


def captioning_batch(
    reader: Feed, shape: Shape, config: DataConfig, tokenizer: Tokenizer, with_images: bool
) -> BatchFn:
    """{"prompt": PromptBatch of [image] and caption, "labels": int32 [B, S], IGNORED where not learnt}."""
    needs = ("features",) if with_images else ()
    _, features = encoded_shapes(config)

    def make(step: int) -> tuple[Batch, list[Damage]]:
        records, damage = _read(reader, shape, step, config, needs=needs)
        pixels = _encoder_input(records, shape, features) if with_images else None
        captions = [r["caption"] for r in records]
        prompt, labels = captioning_rows(
            tokenizer, captions, config.caption_length, pixels, shape.image_tokens
        )
        return {"prompt": prompt, "labels": labels}, damage

    return make


def contrastive_batch(
    reader: Feed, shape: Shape, config: DataConfig, tokenizer: Tokenizer, with_images: bool = False
) -> BatchFn:
    """{"query", "positive", "negative"}: PromptBatches of captions, row i of each from one record; with
    images, the query is the record's picture."""

    def make(step: int) -> tuple[Batch, list[Damage]]:
        records, damage = _read(reader, shape, step, config)
        names = ("positive", "negative") if with_images else ("query", "positive", "negative")
        texts = {name: [r[name] for r in records] for name in names}
        batch: Batch = {n: caption_rows(tokenizer, texts[n], config.caption_length) for n in names}
        if with_images:
            pixels = encoder_pixels([r["image"] for r in records], shape.encoder_size)
            batch["query"] = image_rows(pixels, shape.image_tokens)
        return batch, damage

    return make


def diffusion_batch(
    reader: Feed, interleaved: Reader | None, shape: Shape, config: DataConfig, tokenizer: Tokenizer
) -> BatchFn:
    """{"pixels", "image_prompt", "text_prompt", "use_image": bool [B]}: see `rows` for which row is whose.

    Of precomputed records "latent_mean" and "latent_logvar", bfloat16 [B, h, w, C], stand for "pixels", and
    features [N, 1, T, C] for the image prompt's pixels.
    With interleaved prompts also "interleaved_prompt" and "use_interleaved", and beside latents
    "interleaved_pixels", the targets of these rows.
    """
    layout = row_layout(shape.batch_size // shape.groups, config.p_image, config.p_interleaved)
    length = config.interleaved_length
    if not length:
        length = config.interleaved_images * shape.image_tokens + config.caption_length
    groups = shape.groups // shape.process_count
    moments, features = encoded_shapes(config)

    def fits(record: Record) -> Record:
        elements = record["prompt"].elements
        pictures = sum(isinstance(element, Image) for element in elements)
        words = sum(len(tokenizer.encode(e.text)) for e in elements if isinstance(e, Text))
        if pictures > config.interleaved_images or words + pictures * shape.image_tokens > length:
            raise DamagedRecord(
                f"its prompt has {pictures} images and {words} other tokens, more than "
                f"{config.interleaved_images} images and {length} tokens in all"
            )
        return record

    def read(step: int, kind: np.ndarray, canvas: _Canvas) -> tuple[list[Record], list[Damage]]:
        source, batch, size = reader.at(step)
        mixed = interleaved_before(layout, step * shape.groups + shape.process_index * groups)
        records: list[Record] = []
        damage: list[Damage] = []
        for row, (place, which) in enumerate(zip(shape.positions(batch), kind, strict=True)):
            # The two kinds of record are counted apart, so that each set is seen whole in its epochs.
            if which == INTERLEAVED:
                assert interleaved is not None
                record, passed = _read_one(interleaved, mixed, config, fits)
                mixed += 1
            else:
                seen = row % layout.samples < layout.image_rows
                needs = ("latents", "features") if seen else ("latents",)
                record, passed = _read_one(source, place - mixed, config, size=size, needs=needs)
            records.append(canvas.take(row, record))
            damage += passed
        return records, damage

    def make(step: int) -> tuple[Batch, list[Damage]]:
        kind = kinds(layout, step * shape.groups + shape.process_index * groups, groups)
        canvas = _Canvas(shape.rows)
        records, damage = read(step, kind.reshape(-1), canvas)
        number = np.arange(len(records)).reshape(kind.shape)
        with_image = [records[i] for i in number[:, : layout.image_rows].reshape(-1)]
        # Where two kinds overlap, the row that is not used may have no caption.
        captions = [records[i].get("caption", "") for i in number[:, layout.text_start :].reshape(-1)]
        batch: Batch = {
            **(canvas.batch() if moments is None else _moments(records, moments)),
            "image_prompt": image_rows(_encoder_input(with_image, shape, features), shape.image_tokens),
            "text_prompt": caption_rows(tokenizer, captions, config.caption_length, shape.encoder_size),
            "use_image": kind.reshape(-1) == IMAGE,
        }
        if layout.interleaved_rows:
            end = layout.interleaved_start + layout.interleaved_rows
            middle = number[:, layout.interleaved_start : end].reshape(-1)
            batch["interleaved_prompt"] = lay_out(
                tokenizer,
                [records[i].get("prompt") for i in middle],
                image_size=shape.encoder_size,
                image_tokens=shape.image_tokens,
                length=length,
                num_images=config.interleaved_images,
            )
            batch["use_interleaved"] = kind.reshape(-1) == INTERLEAVED
            if moments is not None:
                side = config.image_size
                blank = np.zeros((side, side, 3), np.uint8)
                batch["interleaved_pixels"] = np.stack([records[i].get("image", blank) for i in middle])
        return batch, damage

    return make


def _read(
    reader: Feed,
    shape: Shape,
    step: int,
    config: DataConfig,
    needs: Sequence[str] = (),
    canvas: _Canvas | None = None,
) -> tuple[list[Record], list[Damage]]:
    source, batch, size = reader.at(step)
    records: list[Record] = []
    damage: list[Damage] = []
    for row, position in enumerate(shape.positions(batch)):
        record, passed = _read_one(source, position, config, size=size, needs=needs)
        records.append(record if canvas is None else canvas.take(row, record))
        damage += passed
    return records, damage


def _read_one(
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


class _Canvas:
    """The pictures of a batch, moved into its array one by one: the decoder's memory serves the next one."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._pixels: np.ndarray | None = None

    def take(self, row: int, record: Record) -> Record:
        """The record, its picture a view of row `row`."""
        if "image" not in record:
            return record
        if self._pixels is None:
            self._pixels = np.empty((self._rows, *record["image"].shape), np.uint8)
        self._pixels[row] = record["image"]
        return {**record, "image": self._pixels[row]}

    def batch(self) -> Batch:
        """{"pixels": uint8 [B, H, W, 3]}, once every row was taken."""
        assert self._pixels is not None
        return {"pixels": self._pixels}


def _moments(records: Sequence[Record], shape: tuple[int, ...]) -> Batch:
    """Mean and log variance of latents; zeros for records without, whose pixels come beside."""
    out = np.zeros((2, len(records), *shape[1:]), BF16)
    for row, record in enumerate(records):
        if "latents" in record:
            out[:, row] = record["latents"]
    return {"latent_mean": out[0], "latent_logvar": out[1]}


def _encoder_input(records: Sequence[Record], shape: Shape, features: tuple[int, ...] | None) -> np.ndarray:
    """[N, H, W, 3] for the image encoder, or its features [N, T, C] where they are known."""
    if features is None:
        return encoder_pixels([record["image"] for record in records], shape.encoder_size)
    if features[0] != shape.image_tokens:
        raise UserError(
            f"the precomputed features are {features[0]} tokens a picture; the model has {shape.image_tokens}"
        )
    out = np.zeros((len(records), *features), BF16)
    for row, record in zip(out, records, strict=True):
        if "features" in record:  # an interleaved sample's is not used
            row[:] = record["features"]
    return out
