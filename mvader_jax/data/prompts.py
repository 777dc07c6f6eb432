"""Rows of a training batch as PromptBatches: every shape is fixed by the config, never by the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvader_jax.condition import PADDING, PromptBatch
from mvader_jax.prompt.tokenizer import Tokenizer

#: Label of a position that the captioning loss leaves out.
IGNORED = -100


def image_rows(pixels: np.ndarray, image_tokens: int) -> PromptBatch:
    """Prompts of one image each, weight 1. pixels: [N, H, W, 3], preprocessed for the image encoder, or its
    features [N, T, C]."""
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
    length = config.length or length
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


def captioning_rows(
    tokenizer: Tokenizer, captions: Sequence[str], length: int, pixels: np.ndarray | None, image_tokens: int
) -> tuple[PromptBatch, np.ndarray]:
    """([image], caption and EOS up to `length` tokens; labels int32 [B, S]).

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


def _plain(ids: np.ndarray, pixels: np.ndarray, index: np.ndarray) -> PromptBatch:
    """Every position exists and has weight 1."""
    return PromptBatch(
        token_ids=ids,
        pixels=np.ascontiguousarray(pixels),
        image_index=np.ascontiguousarray(index, np.int32),
        log_weights=np.zeros(ids.shape, np.float32),
        condition_log_weights=np.zeros(ids.shape, np.float32),
    )
