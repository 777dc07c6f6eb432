"""Latents, image features and hidden states computed once, and read in training in place of the pictures.

A folder: `encoded.json`, and for each split ArrayRecord files of `shard_size` records each. A record is
raw bfloat16: the latents' mean and log variance, then the features, then the hidden states of its image prompt and
of its caption, whichever the set holds, then its captions as UTF-8. A record of a picture that could not be read
holds the reason instead. The hidden states of the null prompt are a file of their own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import BFloat16

from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import DamagedRecord, Dataset, Record
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.stored import draw_caption
from mvader_jax.errors import UserError

INFO = "encoded.json"
BF16 = np.dtype(ml_dtypes.bfloat16)
#: What a set may hold.
PARTS = ("latents", "features", "states")
NULL = "null_states"


class EncodedShapes(NamedTuple):
    """Shapes of what comes precomputed of a picture: latents (2, h, w, C), features (T, C); None for what does not.

    states: (T, S, N, D), positions of the hidden states of its image prompt, of its caption and of the null prompt, and
    their width.
    """

    latents: tuple[int, ...] | None = None
    features: tuple[int, ...] | None = None
    states: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class EncodedInfo:
    """What a set of encoded records is.

    latents: (2, h, w, C), mean and log variance of the VAE's posterior, unscaled; None where there are none.
    features: (T, C), the image encoder's output for a picture; None where there are none.
    states: (T, S, N, D), positions of an image prompt, of a caption and of the null prompt, and the width of their
    hidden states; None where there are none.
    image_size, encoder_size: sides in pixels of the target, and of the encoder's input (0 without features).
    splits: records of each. shard_size: records a file. origin: which pictures.
    components: {component: SHA-256 of the parameters that computed it, where known}.
    damaged: pictures that could not be read, by reason.
    """

    latents: tuple[int, ...] | None
    features: tuple[int, ...] | None
    image_size: int
    encoder_size: int
    splits: Mapping[str, int]
    shard_size: int
    origin: Mapping[str, Any]
    components: Mapping[str, str | None]
    damaged: Mapping[str, int] = dataclasses.field(default_factory=dict)
    states: tuple[int, ...] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each part in a record, in its order."""
        held = {"latents": self.latents, "features": self.features}
        if self.states is not None:
            images, words, _, width = self.states
            held["states"] = (images + words, width)
        return {part: shape for part, shape in held.items() if shape is not None}

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self.shapes)

    def describe(self) -> str:
        """As in "latents 2 x 8 x 8 x 4 and features 16 x 384"."""
        return " and ".join(f"{part} {' x '.join(map(str, shape))}" for part, shape in self.shapes.items())

    def shards(self, split: str) -> list[range]:
        """The record numbers of each file of a split."""
        total = self.splits[split]
        return [range(at, min(at + self.shard_size, total)) for at in range(0, total, self.shard_size)]

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EncodedInfo:
        fields = {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name != "states"}
        fields["states"] = value.get("states")  # sets of before have none
        counts = [fields["shard_size"], *(fields["splits"][split] for split in ("train", "validation"))]
        if not all(isinstance(count, int) and count >= 0 for count in counts) or not counts[0]:
            raise ValueError(f"its numbers of records are {counts}")
        if not isinstance(fields["origin"]["source"], str):
            raise ValueError("it does not say which pictures it is of")
        for part in PARTS:
            fields[part] = None if fields[part] is None else tuple(fields[part])
        return cls(**fields)


def read_info(path: str | os.PathLike[str]) -> EncodedInfo:
    """Raises UserError if there is no finished encoded set at `path`."""
    file = epath.Path(path) / INFO
    try:
        return EncodedInfo.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"there is no finished encoded set at {os.fspath(path)!r} (`mvader data encode` writes one): "
            f"{type(error).__name__} at {INFO}"
        ) from None


def encoded_shapes(config: DataConfig) -> EncodedShapes:
    """Shapes of what the records of the precomputed sets hold.

    Raises UserError where the sets differ: each stands for its own records, whole.
    """
    sets = {path: read_info(path) for path in config.precomputed}
    shapes = {EncodedShapes(info.latents, info.features, info.states) for info in sets.values()}
    if len(shapes) > 1:
        raise UserError(
            "every precomputed set must hold the same arrays of its pictures (both parts are encoded into one set), but "
            + ", ".join(f"{path} holds {info.describe()}" for path, info in sets.items())
        )
    return shapes.pop() if shapes else EncodedShapes()


def parts_of(config: DataConfig) -> frozenset[str]:
    """Which of PARTS training need not compute: those that the precomputed sets hold."""
    return frozenset(part for part, shape in encoded_shapes(config)._asdict().items() if shape)


def null_states(config: DataConfig) -> BFloat16[np.ndarray, "N D"]:
    """The null prompt's hidden states of the precomputed sets. Raises UserError where they cannot be read."""
    path = config.precomputed[0]
    *_, length, width = read_info(path).states or (0, 0)
    try:
        data = (epath.Path(path) / NULL).read_bytes()
        return np.frombuffer(data, BF16).reshape(length, width)
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} has no hidden states of the null prompt: {error}") from None


def shard_path(path: str | os.PathLike[str], split: str, shard: int) -> epath.Path:
    return epath.Path(path) / f"{split}-{shard:05d}.array_record"


def pack(
    latents: BFloat16[np.ndarray, "2 h w C"] | None,
    features: BFloat16[np.ndarray, "T D"] | None,
    captions: Sequence[str],
    states: BFloat16[np.ndarray, "P W"] | None = None,
) -> bytes:
    """A record's bytes from bfloat16 arrays."""
    parts = (latents, features, states)
    arrays = [np.ascontiguousarray(part).tobytes() for part in parts if part is not None]
    return b"".join([*arrays, "\n".join(captions).encode()])


class Encoded:
    """{"latents": (2, h, w, C), "features": (T, C), "states": (T + S, D), all bfloat16 and where the set holds them;
    "caption"; "picture": gives the picture itself when called, for rows that need it}.

    Where the source words its captions anew at each reading, so it does here, exactly as where the pictures
    are drawn.
    """

    def __init__(self, path: str, split: Split, config: DataConfig) -> None:
        """Raises UserError if there is no such set, or it is of other pictures than the config's."""
        self.path, self.split, self._config = path, split, config
        self.info = read_info(path)
        self._check()
        shapes = self.info.shapes
        #: (part, its shape, its bytes), in the order of a record.
        self._layout = [(p, shape, math.prod(shape) * BF16.itemsize) for p, shape in shapes.items()]
        self._least = sum(size for _, _, size in self._layout)
        self._open()

    def _check(self) -> None:
        source, origin = self._config.source, self.info.origin
        if origin["source"] != source.kind:
            raise UserError(
                f"{self.path!r} was encoded from {origin['source']}, but the data's source is {source.kind}"
            )
        if self.info.image_size != self._config.image_size:
            raise UserError(
                f"{self.path!r} was encoded at {self.info.image_size} pixels, but the model takes "
                f"{self._config.image_size}"
            )
        seed, size = self._config.seed, self._config.image_size
        difference = source.differs(origin, seed, size)
        if difference:
            raise UserError(f"{self.path!r} was encoded from {difference}")
        if self._config.flip or self._config.crop == "random":
            raise UserError("precomputed latents are of the centre crop: set crop='centre' and flip=0")

    def _open(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        count = len(self.info.shards(self.split))
        self._files = [os.fspath(shard_path(self.path, self.split, shard)) for shard in range(count)]
        try:
            self._records = ArrayRecordDataSource(self._files)
            found = len(self._records)
        except Exception as error:  # array_record raises whatever its file system does
            raise UserError(f"the encoded set {self.path!r} cannot be opened: {error}") from None
        if found != len(self):
            raise UserError(f"the encoded set {self.path!r} has {found} records, but should have {len(self)}")
        self._wording = self._config.source.wording(self.split, self._config.seed, self._config.image_size)
        self._pictures: Dataset | None = None

    def __len__(self) -> int:
        return self.info.splits[self.split]

    def record(self, index: int, rng: np.random.Generator) -> Record:
        try:
            data = self._records[index]
        except Exception as error:  # as in `_open`
            raise DamagedRecord(f"it cannot be read: {error}") from None
        if len(data) < self._least:
            raise DamagedRecord(f"it could not be encoded: {data.decode(errors='replace')}")
        record: Record = {"picture": self._picture_of(index)}
        at = 0
        for part, shape, size in self._layout:
            record[part] = np.frombuffer(data, BF16, size // BF16.itemsize, at).reshape(shape)
            at += size
        record["caption"] = (
            draw_caption(data[at:], rng) if self._wording is None else self._wording(index, rng)
        )
        return record

    def where(self, index: int) -> str:
        shard, record = divmod(index, self.info.shard_size)
        return f"record {record} of {self._files[shard]}"

    def _picture_of(self, index: int) -> Callable[[], Any]:
        def read() -> Any:
            if self._pictures is None:
                config = self._config
                self._pictures = config.source.of_origin(
                    self.info.origin, self.split, config.seed, config.image_size
                )
            return self._pictures.record(index, np.random.default_rng(0))["image"]

        return read

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split, "config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["split"], state["config"])  # type: ignore[misc]
