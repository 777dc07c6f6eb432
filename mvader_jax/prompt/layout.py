"""Prompts -> PromptBatch: where every element's tokens and pictures stand, and their log weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from mvader_jax.condition import PADDING, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.images.preprocess import clip_preprocess, region_weights
from mvader_jax.images.read import load_image
from mvader_jax.prompt.elements import (
    SITES,
    Balance,
    Image,
    LongPrompts,
    Prompt,
    PromptLike,
    Site,
    Text,
    check_balance,
)
from mvader_jax.prompt.length import Fit, Part, notice
from mvader_jax.prompt.theta import balanced, log_theta, span_factors, spread_factors, wanted_shares
from mvader_jax.prompt.tokenizer import Tokenizer, bucket
from mvader_jax.prompt.words import unseen, unseen_sentence

#: Places for elements in a batch that marks them: of most prompts, so that these share a program.
_PLACES = 4


def lay_out(
    tokenizer: Tokenizer,
    prompts: Sequence[PromptLike | None],
    *,
    image_size: int = 0,
    image_tokens: int = 0,
    max_positions: int | None = None,
    vocabulary: int | None = None,
    length: int | None = None,
    num_images: int | None = None,
    site: Site | None = None,
    balance: Balance | None = None,
    elements: bool = False,
    pixels: Float32[np.ndarray, "N {image_size} {image_size} 3"] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    decoder_heads: tuple[int, int] | None = None,
    cross_attention_heads: tuple[int, int] | None = None,
    long_prompts: LongPrompts | None = None,
    chunks: bool = False,
    notify: Callable[[str], None] = notice,
) -> PromptBatch:
    """Prompts laid out for an embedder, a row each; NumPy throughout.

    prompts: anything `Prompt.of` takes; None is the null condition (one EOS; for CLIP an empty text).
    image_size, image_tokens: side of the encoder's input, and tokens an image becomes (a square
        number); 0 for an embedder that takes text only.
    max_positions: default, the config's.
    vocabulary: rows of the embedder's token embedding, where there is a limit.
    length: pad to this many positions; default, the `bucket` of the longest prompt.
    num_images: pad the images of a row to this many; default, the most of any row.
    site, balance, long_prompts: override the prompts' own.
    elements: whether to mark which positions belong to which element, as `balance` "attention" does anyway.
    pixels: float32 [N, image_size, image_size, 3], already preprocessed: all images of the batch in
        order, in place of reading them from the prompts.
    sizes: width and height of each of them before preprocessing, which regions are laid over; default,
        square.
    decoder_heads, cross_attention_heads: [layers, heads] of the model, which the prompts' factors are
        spread to; None where it has none. The batch has factors only where a prompt has.
    chunks: whether the embedder reads a longer prompt in several: each is laid out as a prompt of its own.
    notify: called with a sentence for every prompt that is cut, and for words that no training has seen, where the
        tokenizer knows which it has.
    Elements follow one another without delimiters, each text tokenised on its own (as in the public
    repository Aleph-Alpha/magma). Weight 1 everywhere gives log weights of exactly 0.
    Raises UserError for a prompt that is too long and is not to be cut, for chunks where there are none, for ids
    beyond the vocabulary, for an image where the embedder takes none, for images that cannot be read, and for
    factors of another shape than the model's.
    """
    config = tokenizer.config
    rows = [None if p is None else Prompt.of(p) for p in prompts]
    if site is not None and site not in SITES:
        raise UserError(f"the site of the weights is {site!r}; accepted: {', '.join(SITES)}")
    if not image_tokens and any(isinstance(e, Image) for p in rows if p for e in p.elements):
        raise UserError("this bundle's embedder takes text only, but the prompt holds an image")
    limit = config.max_positions if max_positions is None else max_positions
    shown = [e for p in rows if p for e in p.elements if isinstance(e, Text)]
    if tokenizer.words is not None and (new := unseen((e.text for e in shown), tokenizer.words)):
        notify(unseen_sentence(new))
    texts = _encode_texts(tokenizer, shown)
    reader = _ImageReader(image_size, image_tokens, pixels, sizes)
    fit = Fit(tokenizer, limit, chunks, long_prompts, notify)
    for prompt in rows:
        if prompt is not None:
            check_balance(prompt.balance if balance is None else balance, site or prompt.site)
    laid_out = [_row(fit, p, texts, reader, balance) for p in rows]

    longest = max((len(row.ids) for row in laid_out), default=1)
    if length is None:
        length = bucket(longest, limit) if config.length is None else max(longest, config.length)
    if longest > length:
        raise UserError(f"a prompt has {longest} tokens, more than the {length} positions it is padded to")
    most = max((len(row.images) for row in laid_out), default=0)
    if num_images is None:
        num_images = most
    if most > num_images:
        raise UserError(f"a prompt has {most} images, more than the {num_images} of its batch")

    shape = (len(rows), length)
    token_ids = np.zeros(shape, np.int32)
    image_index = np.full(shape, -1, np.int32)
    decoder = np.full(shape, PADDING, np.float32)
    cross = np.full(shape, PADDING, np.float32)
    stack = np.zeros((len(rows), num_images, image_size, image_size, 3), np.float32)
    for i, (row, prompt) in enumerate(zip(laid_out, rows, strict=True)):
        n = len(row.ids)
        token_ids[i, :n] = row.ids
        image_index[i, :n] = row.image_index
        where = site or (prompt.site if prompt else "both")
        decoder[i, :n] = row.log_weights if where != "cross_attention" else 0.0
        cross[i, :n] = row.log_weights if where != "decoder" else 0.0
        if config.length is not None:
            # CLIP's padding is made of tokens like others: Stable Diffusion uses no mask.
            filling = slice(n, config.length)
            token_ids[i, filling], decoder[i, filling], cross[i, filling] = config.pad_id, 0.0, 0.0
        for j, image in enumerate(row.images):
            stack[i, j] = image
    if vocabulary is not None and token_ids.size and token_ids.max() >= vocabulary:
        raise UserError(
            f"a prompt has token {token_ids.max()}, but the model's embedding ends at {vocabulary - 1}: this "
            "bundle's tokenizer belongs to another model"
        )
    return PromptBatch(
        token_ids=token_ids,
        pixels=stack,
        image_index=image_index,
        log_weights=decoder,
        condition_log_weights=cross,
        factors=spread_factors([p.decoder_factors if p else None for p in rows], decoder_heads, "decoder"),
        condition_factors=spread_factors(
            [p.cross_attention_factors if p else None for p in rows],
            cross_attention_heads,
            "cross-attention",
        ),
        **_elements(laid_out, length, marked=elements),
    )


def _elements(rows: Sequence[_Row], length: int, *, marked: bool) -> dict[str, Float32[np.ndarray, "..."]]:
    """What a batch holds of its rows' elements: `elements` where asked for, `wanted` where thetas move."""
    moved = any(row.moves for row in rows)
    if not (moved or marked):
        return {}
    count = max(_PLACES, *(1 << (len(row.wanted) - 1).bit_length() for row in rows))
    elements = np.zeros((len(rows), length, count), np.float32)
    wanted = np.zeros((len(rows), count), np.float32)
    for i, row in enumerate(rows):
        elements[i, : len(row.element)] = np.array(row.element)[:, None] == np.arange(count)
        if row.moves:
            wanted[i, : len(row.wanted)] = row.wanted
    return {"elements": elements, **({"wanted": wanted} if moved else {})}


def _encode_texts(
    tokenizer: Tokenizer, elements: Iterable[Text]
) -> dict[Text, tuple[list[int], Float64[np.ndarray, " _"]]]:
    """Ids and per-token factors of every text; offsets are asked for only where there are spans."""
    unique = list(dict.fromkeys(elements))
    plain = [t for t in unique if not t.span_weights]
    known = {
        t: (ids, np.ones(len(ids)))
        for t, ids in zip(plain, tokenizer.encode_many([t.text for t in plain]), strict=True)
    }
    for text in unique:
        if text.span_weights:
            encoding = tokenizer.backend.encode(text.text, add_special_tokens=False)
            known[text] = (list(encoding.ids), span_factors(text, encoding.offsets))
    return known


def _row(
    fit: Fit,
    prompt: Prompt | None,
    texts: dict[Text, tuple[list[int], Float64[np.ndarray, " _"]]],
    reader: _ImageReader,
    balance: Balance | None,
) -> _Row:
    parts: list[Part] = []
    pictures: list[np.ndarray] = []
    for element in prompt.elements if prompt else ():
        if isinstance(element, Text):
            tokens, factors = texts[element]
            parts.append(Part(tokens, [-1] * len(tokens), element.weight, factors))
        else:
            picture, factors = reader.read(element)
            start = len(pictures) * reader.tokens
            index = list(range(start, start + reader.tokens))
            parts.append(Part([0] * reader.tokens, index, element.weight, factors))
            pictures.append(picture)
    whole = prompt is None or fit.whole(prompt, parts)
    if not whole:
        parts = fit.cut(parts)
    weights, inside = [part.weight for part in parts], [part.factors for part in parts]
    meant = prompt is not None and (prompt.balance if balance is None else balance)
    with np.errstate(over="ignore", under="ignore"):
        if meant is True:
            thetas = balanced(weights, inside)
        else:
            thetas = [weight * factors for weight, factors in zip(weights, inside, strict=True)]
    logs = log_theta(np.concatenate(thetas)) if thetas else np.zeros(0, np.float32)
    wanted = wanted_shares(weights, inside)
    return _Row(*fit.framed(parts, logs, prompt is None), pictures, wanted, meant == "attention")


@dataclasses.dataclass
class _Row:
    """A prompt's positions (`length.Framed`) and images, the shares of attention that its elements are to get, and whether
    thetas are moved for it."""

    ids: list[int]
    image_index: list[int]
    log_weights: list[float]
    element: list[int]
    images: list[Float32[np.ndarray, "h w 3"]]
    wanted: Float64[np.ndarray, " _"]
    moves: bool


class _ImageReader:
    """Reads and preprocesses the images of a batch, each source once."""

    def __init__(
        self,
        size: int,
        tokens: int,
        pixels: Float32[np.ndarray, "N h w 3"] | None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.size = size
        self.tokens = tokens
        self.grid = math.isqrt(tokens)
        if self.grid**2 != tokens:
            raise ValueError(f"{tokens} tokens an image are no square grid")
        self.given = None if pixels is None else zip(pixels, sizes or [(1, 1)] * len(pixels), strict=True)
        self.known: dict[Any, tuple[np.ndarray, tuple[int, int]]] = {}

    def read(
        self, element: Image
    ) -> tuple[Float32[np.ndarray, "{self.size} {self.size} 3"], Float64[np.ndarray, " {self.tokens}"]]:
        """(pixels [size, size, 3], factors [tokens])."""
        if self.given is not None:
            picture, size = next(self.given)
        else:
            key = element.path or id(element.image)
            if key not in self.known:
                loaded = load_image(element.image)
                self.known[key] = (clip_preprocess(loaded, self.size), loaded.size)
            picture, size = self.known[key]
        if not element.regions:
            return picture, np.ones(self.tokens)
        return picture, region_weights(element.checked_regions, self.grid, size)
