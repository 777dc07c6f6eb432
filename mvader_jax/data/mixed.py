"""Batches whose samples are conditioned on their image, their caption or an interleaved prompt, at fixed shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mvader_jax.condition import PromptBatch
from mvader_jax.data.batches import (
    Batch,
    Canvas,
    Feed,
    Shape,
    encoder_input,
    moments,
    read_one,
    states,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage, DamagedRecord, Reader, Record
from mvader_jax.data.prompts import caption_rows, image_rows
from mvader_jax.data.rows import IMAGE, INTERLEAVED, RowLayout, interleaved_before, kinds
from mvader_jax.data.sources.encoded import encoded_shapes, null_states
from mvader_jax.prompt.elements import Image, Text
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer

#: Hidden states in a batch: of image prompts, of captions, of the null prompt.
STATES = ("image_states", "text_states", "null_states")


@dataclasses.dataclass(frozen=True)
class MixedRows:
    """layout: which samples have which rows; caption_length: tokens of a caption; interleaved_images,
    interleaved_length: images and tokens that every interleaved prompt is padded to. data_sets: whether a batch says
    which data set each sample is of."""

    layout: RowLayout
    caption_length: int
    interleaved_images: int
    interleaved_length: int
    data_sets: bool = False


class MixedBatches:
    """Step -> {"pixels", "image_prompt", "text_prompt", "use_image": bool [B]}: see `data/rows.py` for which row is
    whose.

    Of precomputed records "latent_mean" and "latent_logvar", bfloat16 [B, h, w, C], stand for "pixels", and
    features [N, 1, T, C] for the image prompt's pixels. With hidden states, bfloat16 [rows, length, D] under the names
    of `STATES`, there are no pixels; the null prompt's are there once for each group of rows.
    Where it is asked which data set a sample is of, "data_set" says so, int32 [B].
    With interleaved prompts also "interleaved_prompt" and "use_interleaved", and beside latents
    "interleaved_pixels", the targets of these rows.
    """

    def __init__(
        self,
        feed: Feed,
        interleaved: Reader | None,
        rows: MixedRows,
        data: DataConfig,
        shape: Shape,
        tokenizer: Tokenizer,
    ) -> None:
        """interleaved: where prompts of several elements are read, if a share of the samples has some."""
        self._feed, self._interleaved, self._rows = feed, interleaved, rows
        self._data, self._shape, self._tokenizer = data, shape, tokenizer
        self._latents, self._features, self._states = encoded_shapes(data)
        self._null = null_states(data) if self._states and self._states[2] else None
        self._groups = shape.groups // shape.process_count

    def __call__(self, step: int) -> tuple[Batch, list[Damage]]:
        layout, shape = self._rows.layout, self._shape
        kind = kinds(layout, self._first_group(step), self._groups)
        canvas = Canvas(shape.rows)
        records, damage, data_sets = self._read(step, kind.reshape(-1), canvas)
        number = np.arange(len(records)).reshape(kind.shape)
        with_image = [records[i] for i in number[:, : layout.image_rows].reshape(-1)]
        # Where two kinds overlap, the row that is not used may have no caption.
        with_text = [records[i] for i in number[:, layout.text_start :].reshape(-1)]
        captions = [record.get("caption", "") for record in with_text]
        batch: Batch = {
            **(canvas.batch() if self._latents is None else moments(records, self._latents)),
            "image_prompt": self._image_prompts(with_image),
            "text_prompt": caption_rows(
                self._tokenizer, captions, self._rows.caption_length, shape.encoder_size
            ),
            "use_image": kind.reshape(-1) == IMAGE,
        }
        if self._rows.data_sets:
            batch["data_set"] = np.array(data_sets, np.int32)
        if self._states is not None:
            batch[STATES[0]] = states(with_image, self._states, "image")
            batch[STATES[1]] = states(with_text, self._states, "caption")
            if self._null is not None:
                batch[STATES[2]] = np.stack([self._null] * self._groups)
        if layout.interleaved_rows:
            end = layout.interleaved_start + layout.interleaved_rows
            middle = number[:, layout.interleaved_start : end].reshape(-1)
            batch |= self._mixed([records[i] for i in middle])
            batch["use_interleaved"] = kind.reshape(-1) == INTERLEAVED
        return batch, damage

    def _image_prompts(self, records: Sequence[Record]) -> PromptBatch:
        shape = self._shape
        if self._states is None:
            return image_rows(encoder_input(records, shape, self._features), shape.image_tokens)
        nothing = np.zeros((len(records), 0, shape.encoder_size, shape.encoder_size, 3), np.float32)
        return dataclasses.replace(image_rows(nothing[:, :, 0, 0], shape.image_tokens), pixels=nothing)

    def _first_group(self, step: int) -> int:
        """The first of this process's groups of rows in a step, counted over the run."""
        return step * self._shape.groups + self._shape.process_index * self._groups

    def _read(
        self, step: int, kind: np.ndarray, canvas: Canvas
    ) -> tuple[list[Record], list[Damage], list[int]]:
        """(records, what was passed over, the data set of each)."""
        source, batch, size = self._feed.at(step)
        layout = self._rows.layout
        mixed = interleaved_before(layout, self._first_group(step))
        records: list[Record] = []
        damage: list[Damage] = []
        data_sets: list[int] = []
        for row, (place, which) in enumerate(zip(self._shape.positions(batch), kind, strict=True)):
            # The two kinds of record are counted apart, so that each set is seen whole in its epochs.
            if which == INTERLEAVED:
                assert self._interleaved is not None
                record, passed = read_one(self._interleaved, mixed, self._data, self._fitting)
                # Numbered below those of the other kind.
                passed = [dataclasses.replace(p, source=-1 - p.source) for p in passed]
                mixed += 1
            else:
                seen = row % layout.samples < layout.image_rows
                needs = ("latents", "features") if seen and self._states is None else ("latents",)
                record, passed = read_one(source, place - mixed, self._data, size=size, needs=needs)
            data_sets.append(source.data_set(place - mixed) if which != INTERLEAVED else 0)
            records.append(canvas.take(row, record))
            damage += passed
        return records, damage, data_sets

    def _fitting(self, record: Record) -> Record:
        """The record. Raises DamagedRecord where its prompt is longer than the batch has room for."""
        elements, rows = record["prompt"].elements, self._rows
        pictures = sum(isinstance(element, Image) for element in elements)
        words = sum(len(self._tokenizer.encode(e.text)) for e in elements if isinstance(e, Text))
        tokens = words + pictures * self._shape.image_tokens
        if pictures > rows.interleaved_images or tokens > rows.interleaved_length:
            raise DamagedRecord(
                f"its prompt has {pictures} images and {words} other tokens, more than "
                f"{rows.interleaved_images} images and {rows.interleaved_length} tokens in all"
            )
        return record

    def _mixed(self, records: Sequence[Record]) -> Batch:
        """The rows of interleaved prompts, and beside latents the pictures they ask for."""
        batch: Batch = {
            "interleaved_prompt": lay_out(
                self._tokenizer,
                [record.get("prompt") for record in records],
                image_size=self._shape.encoder_size,
                image_tokens=self._shape.image_tokens,
                length=self._rows.interleaved_length,
                num_images=self._rows.interleaved_images,
                notify=lambda _: None,  # training sees them now
            )
        }
        if self._latents is not None:
            side = self._data.image_size
            blank = np.zeros((side, side, 3), np.uint8)
            batch["interleaved_pixels"] = np.stack([record.get("image", blank) for record in records])
        return batch
