"""Rows of a training batch as PromptBatches: every shape is fixed by the config, never by the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from mvader_jax.condition import PADDING, PromptBatch
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig, bucket

#: Pictures as the image encoder reads them, or its features where these were computed before.
Pixels = Float[np.ndarray, "N h w 3"] | Float[np.ndarray, "N T C"]
#: Label of a position that the captioning loss leaves out.
IGNORED = -100


def image_rows(pixels: Pixels, image_tokens: int) -> PromptBatch:
    """Prompts of one image each, weight 1. pixels: preprocessed for the image encoder, or its features."""
    shape = (pixels.shape[0], image_tokens)
    index = np.broadcast_to(np.arange(image_tokens, dtype=np.int32), shape)
    return _plain(np.zeros(shape, np.int32), pixels[:, None], index)


def caption_rows(
    tokenizer: Tokenizer, captions: Sequence[str], length: int, image_size: int = 0
) -> PromptBatch:
    """Prompts of one text each, weight 1, padded to `length` tokens; longer captions are cut.

    A caption without tokens becomes the null condition, one EOS.
    """
    config = tokenizer.config
    before = [config.bos_id] if config.add_bos and config.bos_id is not None else []
    after = [config.eos_id] if config.add_eos else []
    length = caption_length(config, length)
    shape = (len(captions), length)
    # CLIP's padding is made of tokens like others; elsewhere the positions do not exist.
    masked = config.length is None
    ids = np.full(shape, 0 if masked else config.pad_id, np.int32)
    logs = np.full(shape, PADDING if masked else 0.0, np.float32)
    for row, tokens in enumerate(tokenizer.encode_many(captions)):
        kept = [*before, *tokens[: length - len(before) - len(after)], *after] or [config.eos_id]
        ids[row, : len(kept)] = kept
        logs[row, : len(kept)] = 0.0
    pixels = np.zeros((shape[0], 0, image_size, image_size, 3), np.float32)
    return PromptBatch(ids, pixels, np.full(shape, -1, np.int32), logs, logs.copy())


def caption_length(config: TokenizerConfig | None, length: int) -> int:
    """Positions of a caption row that is asked to have `length`: the tokenizer's own where it has one."""
    return config.length if config is not None and config.length else length


def null_row(config: TokenizerConfig, image_size: int = 0, max_positions: int | None = None) -> PromptBatch:
    """The null condition, one row: one EOS, between BOS and EOS where the tokenizer adds them.

    The same as `lay_out` gives for the prompt None, of which no vocabulary is needed.
    """
    ids = [config.bos_id] if config.add_bos and config.bos_id is not None else []
    ids.append(config.eos_id)
    limit = config.max_positions if max_positions is None else max_positions
    length = config.length or bucket(len(ids), limit)
    # As in `caption_rows`.
    masked = config.length is None
    token_ids = np.full((1, length), 0 if masked else config.pad_id, np.int32)
    token_ids[0, : len(ids)] = ids
    logs = np.full((1, length), PADDING if masked else 0.0, np.float32)
    logs[0, : len(ids)] = 0.0
    pixels = np.zeros((1, 0, image_size, image_size, 3), np.float32)
    return PromptBatch(token_ids, pixels, np.full((1, length), -1, np.int32), logs, logs.copy())


def abstract_rows(
    rows: int, length: int, *, pixels: jax.ShapeDtypeStruct | None = None, side: int = 0, images: int = 0
) -> PromptBatch:
    """A PromptBatch as shapes and dtypes. pixels: of the one image of each row (`image_rows`); without them each
    has `images` images of `side` pixels."""
    if pixels is None:
        held = jax.ShapeDtypeStruct((rows, images, side, side, 3), jnp.float32)
    else:
        held = jax.ShapeDtypeStruct((rows, 1, *pixels.shape[1:]), pixels.dtype)
    # Shapes stand where arrays will.
    ids: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    logs: Any = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    stack: Any = held
    return PromptBatch(ids, stack, ids, logs, logs)


def captioning_rows(
    tokenizer: Tokenizer, captions: Sequence[str], length: int, pixels: Pixels | None, image_tokens: int
) -> tuple[PromptBatch, Int32[np.ndarray, "N S"]]:
    """([image], caption and EOS up to `length` tokens; labels).

    As MAGMA is trained: the labels are the tokens themselves (the loss shifts them), IGNORED on the
    image and on every EOS but the first. pixels: as of `image_rows`, or None for captions alone.
    """
    ids, mask = tokenizer.encode_text(captions, length)
    labels = np.where(mask, ids, IGNORED).astype(np.int32)
    if pixels is None:
        empty = np.zeros((len(captions), 0, 0, 0, 3), np.float32)
        return _plain(ids, empty, np.full(ids.shape, -1, np.int32)), labels
    image = image_rows(pixels, image_tokens)
    ignored = np.full((len(captions), image_tokens), IGNORED, np.int32)
    prompt = _plain(
        np.concatenate([image.token_ids, ids], axis=1),
        pixels[:, None],
        np.concatenate([image.image_index, np.full(ids.shape, -1, np.int32)], axis=1),
    )
    return prompt, np.concatenate([ignored, labels], axis=1)


def _plain(
    ids: Int32[np.ndarray, "N S"],
    pixels: Float[np.ndarray, "N I h w 3"] | Float[np.ndarray, "N I T C"],
    index: Int32[np.ndarray, "N S"],
) -> PromptBatch:
    """Every position exists and has weight 1."""
    return PromptBatch(
        token_ids=ids,
        pixels=np.ascontiguousarray(pixels),
        image_index=np.ascontiguousarray(index, np.int32),
        log_weights=np.zeros(ids.shape, np.float32),
        condition_log_weights=np.zeros(ids.shape, np.float32),
    )
