"""Byte-level BPE: texts <-> ids, vocabularies loaded, trained and written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvader_jax.bounds import NonNegativeInt, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.prompt.added_tokens import add_tokens, write_added_tokens
from mvader_jax.prompt.words import read_words, words_of, write_words
from mvader_jax.settings import Checked

if TYPE_CHECKING:
    import tokenizers


END_OF_TEXT = "<|endoftext|>"
START_OF_TEXT = "<|startoftext|>"
#: How CLIP cuts text into words before BPE (the pattern of openai/CLIP clip/simple_tokenizer.py).
_CLIP_WORDS = (
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
    """What a prompt's tokens look like to the model behind it; the vocabulary is in tokenizer.json.

    kind: which byte-level BPE, where it is built from vocab.json and merges.txt.
    eos_id: ends a caption in training, and is the whole of the null condition.
    bos_id, add_bos, add_eos: what stands around a prompt's tokens.
    length: every prompt is padded with `pad_id` to this many positions, which count like others (CLIP:
        no mask); None pads at the right with positions that do not exist.
    max_positions: the most tokens of a prompt, images included.
    """

    kind: Literal["gpt2", "clip"] = "gpt2"
    eos_id: NonNegativeInt = 50256
    bos_id: NonNegativeInt | None = None
    pad_id: NonNegativeInt = 0
    add_bos: bool = False
    add_eos: bool = False
    length: PositiveInt | None = None
    max_positions: PositiveInt = 2048

    @classmethod
    def gpt2(cls) -> TokenizerConfig:
        """GPT-2's, as GPT-J and MAGMA use it."""
        return cls()

    @classmethod
    def clip(cls) -> TokenizerConfig:
        """The text tower of CLIP ViT-L/14, as Stable Diffusion 1.x uses it."""
        return cls(
            kind="clip",
            eos_id=49407,
            bos_id=49406,
            pad_id=49407,
            add_bos=True,
            add_eos=True,
            length=77,
            max_positions=77,
        )


def bucket(length: int, max_positions: int | None = None) -> int:
    """The padded length for a prompt of `length` tokens: 8, 16, 32, 64, then multiples of 64, so that
    few shapes are ever compiled; never above `max_positions`."""
    padded = max(8, 1 << (length - 1).bit_length()) if length <= 64 else math.ceil(length / 64) * 64
    return padded if max_positions is None else min(padded, max(max_positions, length))


class Tokenizer:
    """A `tokenizers` tokenizer and the config that says how prompts are laid out with it.

    words: all words of the texts that models with it were trained on, where these are few (`words.py`).
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: TokenizerConfig, words: frozenset[str] | None = None
    ) -> None:
        """Raises UserError if the vocabulary lacks a token that the config names."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.config = config
        self.words = words
        for name in ("eos_id", "bos_id"):
            token = getattr(config, name)
            if token is not None and backend.id_to_token(token) is None:
                raise UserError(
                    f"the tokenizer has no token {token} ({name}); it has {self.vocab_size} tokens"
                )

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: TokenizerConfig | None = None) -> Tokenizer:
        """From a tokenizer.json, or a directory that holds one, or vocab.json and merges.txt.

        Without `config` the file tells whether it is CLIP's kind. Raises UserError if it cannot be read.
        """
        import tokenizers

        where = pathlib.Path(path)
        file = where / "tokenizer.json" if where.is_dir() else where
        if where.is_dir() and not file.exists():
            return cls.from_vocabulary(where / "vocab.json", where / "merges.txt", config)
        if not file.exists():
            raise UserError(f"the tokenizer {os.fspath(path)!r} does not exist")
        try:
            backend = tokenizers.Tokenizer.from_file(os.fspath(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{os.fspath(file)!r} is not a tokenizer that can be read: {error}") from None
        if where.is_dir():
            add_tokens(backend, where)
        words = read_words(where) if where.is_dir() else None
        return cls(backend, config or _guess_config(backend), words)

    @classmethod
    def from_vocabulary(
        cls,
        vocab: str | os.PathLike[str],
        merges: str | os.PathLike[str],
        config: TokenizerConfig | None = None,
    ) -> Tokenizer:
        """From the vocab.json and merges.txt of GPT-2 or CLIP, and the tokens added beside them.

        Raises UserError if they cannot be read.
        """
        import tokenizers
        from tokenizers import models

        for file in (vocab, merges):
            if not os.path.isfile(file):
                raise UserError(f"the tokenizer's file {os.fspath(file)!r} does not exist")
        try:
            tokens, pairs = models.BPE.read_file(os.fspath(vocab), os.fspath(merges))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{os.fspath(vocab)!r} is not a vocabulary that can be read: {error}") from None
        clip = config.kind == "clip" if config else START_OF_TEXT in tokens
        if clip:
            backend = tokenizers.Tokenizer(
                models.BPE(tokens, pairs, unk_token=END_OF_TEXT, end_of_word_suffix="</w>", fuse_unk=False)
            )
        else:
            backend = tokenizers.Tokenizer(models.BPE(tokens, pairs))
        _add_pipeline(backend, clip=clip)
        backend.add_special_tokens([t for t in (START_OF_TEXT, END_OF_TEXT) if t in tokens])
        add_tokens(backend, pathlib.Path(vocab).parent)
        return cls(backend, config or _guess_config(backend))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, and the words where they are known, into `directory`, made if need be."""
        folder = pathlib.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(os.fspath(folder / "tokenizer.json"))
        write_words(folder, self.words)

    def trained_on(self, texts: Iterable[str]) -> Tokenizer:
        """This tokenizer after training on texts too: of a small world, with their words."""
        words = None if self.words is None else words_of(texts, self.words)
        return Tokenizer(self.backend, self.config, words)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without BOS or EOS."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, each on its own, without BOS or EOS; several threads."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def encode_text(
        self, texts: Sequence[str], length: int, *, eos: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Captions for training: (ids int32 [B, length], mask bool [B, length]).

        Padded with EOS, as MAGMA pads; the mask covers the caption and, if `eos`, the first EOS after it.
        Longer captions are cut (the EOS is kept).
        """
        ids = np.full((len(texts), length), self.config.eos_id, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, tokens in enumerate(self.encode_many(texts)):
            kept = tokens[: length - eos]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept) + eos] = True
        return ids, mask


def _add_pipeline(backend: tokenizers.Tokenizer, *, clip: bool) -> None:
    """Everything of the tokenizer around its BPE model."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not clip)
    if not clip:
        backend.pre_tokenizer = byte_level
        backend.decoder = decoders.ByteLevel()
        return
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])


def _guess_config(backend: tokenizers.Tokenizer) -> TokenizerConfig:
    """The config that a file without one implies: CLIP's where it has CLIP's start token, else GPT-2's."""
    eos, bos = backend.token_to_id(END_OF_TEXT), backend.token_to_id(START_OF_TEXT)
    if eos is None:
        raise UserError(f"the tokenizer has no {END_OF_TEXT!r}; give its config with the id of its end token")
    if bos is None:
        return dataclasses.replace(TokenizerConfig.gpt2(), eos_id=eos)
    return dataclasses.replace(TokenizerConfig.clip(), eos_id=eos, bos_id=bos, pad_id=eos)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, max_positions: int = 2048) -> Tokenizer:
    """A byte-level BPE of GPT-2's kind trained on `texts`; the same texts give the same tokenizer.

    It can write any string (the 256 bytes are in it) and has EOS as token 0. `vocab_size` is an upper
    bound: fewer tokens come out where the texts hold no more pairs. Raises UserError below 257.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UserError(
            f"a vocabulary of {vocab_size} cannot hold the 256 bytes and {END_OF_TEXT!r}; at least 257"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    _add_pipeline(backend, clip=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    listed = list(texts)
    backend.train_from_iterator(listed, trainer)
    # Fewer tokens than there might be: every word is one, and no pair is left to join.
    words = words_of(listed) if backend.get_vocab_size() < vocab_size else None
    return Tokenizer(backend, TokenizerConfig(eos_id=0, max_positions=max_positions), words)


def write_vocabulary(tokenizer: Tokenizer, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """vocab.json, merges.txt and added_tokens.json, as GPT-2's and CLIP's releases keep them.

    Returns what their tokenizer_config.json says of the added tokens.
    """
    model = json.loads(tokenizer.backend.to_str())["model"]
    where = pathlib.Path(directory)
    (where / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (where / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return write_added_tokens(tokenizer.backend, where)
