"""Batches whose samples are conditioned on their image, their caption or an interleaved prompt, at fixed shares."""

from __future__ import annotations

import dataclasses

import numpy as np

from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Canvas,
    Feed,
    Shape,
    encoder_input,
    moments,
    read_one,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage, DamagedRecord, Reader, Record
from mvader_jax.data.prompts import caption_rows, image_rows
from mvader_jax.data.rows import IMAGE, INTERLEAVED, RowLayout, interleaved_before, kinds
from mvader_jax.data.sources.encoded import encoded_shapes
from mvader_jax.prompt.elements import Image, Text
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class MixedRows:
    """layout: which samples have which rows; caption_length: tokens of a caption; interleaved_images,
    interleaved_length: images and tokens that every interleaved prompt is padded to."""

    layout: RowLayout
    caption_length: int
    interleaved_images: int
    interleaved_length: int


def mixed_batch(
    reader: Feed,
    interleaved: Reader | None,
    rows: MixedRows,
    config: DataConfig,
    shape: Shape,
    tokenizer: Tokenizer,
) -> BatchFn:
    """{"pixels", "image_prompt", "text_prompt", "use_image": bool [B]}: see `data/rows.py` for which row is whose.

    Of precomputed records "latent_mean" and "latent_logvar", bfloat16 [B, h, w, C], stand for "pixels", and
    features [N, 1, T, C] for the image prompt's pixels.
    With interleaved prompts also "interleaved_prompt" and "use_interleaved", and beside latents
    "interleaved_pixels", the targets of these rows.
    """
    layout, length = rows.layout, rows.interleaved_length
    groups = shape.groups // shape.process_count
    latents, features = encoded_shapes(config)

    def fits(record: Record) -> Record:
        elements = record["prompt"].elements
        pictures = sum(isinstance(element, Image) for element in elements)
        words = sum(len(tokenizer.encode(e.text)) for e in elements if isinstance(e, Text))
        if pictures > rows.interleaved_images or words + pictures * shape.image_tokens > length:
            raise DamagedRecord(
                f"its prompt has {pictures} images and {words} other tokens, more than "
                f"{rows.interleaved_images} images and {length} tokens in all"
            )
        return record

    def read(step: int, kind: np.ndarray, canvas: Canvas) -> tuple[list[Record], list[Damage]]:
        source, batch, size = reader.at(step)
        mixed = interleaved_before(layout, step * shape.groups + shape.process_index * groups)
        records: list[Record] = []
        damage: list[Damage] = []
        for row, (place, which) in enumerate(zip(shape.positions(batch), kind, strict=True)):
            # The two kinds of record are counted apart, so that each set is seen whole in its epochs.
            if which == INTERLEAVED:
                assert interleaved is not None
                record, passed = read_one(interleaved, mixed, config, fits)
                # Numbered below those of the other kind.
                passed = [dataclasses.replace(p, source=-1 - p.source) for p in passed]
                mixed += 1
            else:
                seen = row % layout.samples < layout.image_rows
                needs = ("latents", "features") if seen else ("latents",)
                record, passed = read_one(source, place - mixed, config, size=size, needs=needs)
            records.append(canvas.take(row, record))
            damage += passed
        return records, damage

    def make(step: int) -> tuple[Batch, list[Damage]]:
        kind = kinds(layout, step * shape.groups + shape.process_index * groups, groups)
        canvas = Canvas(shape.rows)
        records, damage = read(step, kind.reshape(-1), canvas)
        number = np.arange(len(records)).reshape(kind.shape)
        with_image = [records[i] for i in number[:, : layout.image_rows].reshape(-1)]
        # Where two kinds overlap, the row that is not used may have no caption.
        captions = [records[i].get("caption", "") for i in number[:, layout.text_start :].reshape(-1)]
        batch: Batch = {
            **(canvas.batch() if latents is None else moments(records, latents)),
            "image_prompt": image_rows(encoder_input(with_image, shape, features), shape.image_tokens),
            "text_prompt": caption_rows(tokenizer, captions, rows.caption_length, shape.encoder_size),
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
                num_images=rows.interleaved_images,
            )
            batch["use_interleaved"] = kind.reshape(-1) == INTERLEAVED
            if latents is not None:
                side = config.image_size
                blank = np.zeros((side, side, 3), np.uint8)
                batch["interleaved_pixels"] = np.stack([records[i].get("image", blank) for i in middle])
        return batch, damage

    return make
