"""What a kind of public checkpoint is: how it is recognised, read, and written again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mvader_jax.convert.engine import Abstract, SourceMap
from mvader_jax.convert.read import open_file, open_folder
from mvader_jax.convert.settings import Settings
from mvader_jax.convert.tensors import Weights
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig

if TYPE_CHECKING:
    from mvader_jax.convert.export import Job

#: Patterns of tensor names; a set of them is a sign where each matches the beginning of some name.
Sign = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read a source. config: a settings file in place of the config.json beside it; ema, variant:
    which of several sets of weights; trust_pickle: also read pickles that can run code."""

    config: Path | None = None
    ema: bool = False
    variant: str | None = None
    trust_pickle: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """Weights and the map of what they become."""

    weights: Weights
    source_map: SourceMap


@dataclasses.dataclass(frozen=True)
class Source:
    """A source understood. tokenizer: the folder of its vocabulary, where it has one; notes: for the user."""

    kind: Kind
    parts: tuple[Part, ...]
    model: ModelConfig
    abstract: Abstract
    tokenizer: Path | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Export:
    """What a kind is written as. name: what `--to` says; holds: the components it has a place for.

    write: puts the files into a directory and returns notes; it raises UserError for what the format
    cannot hold. tokenizer: whether it has a place for one. copies: how often the weights stand on the disk
    while it writes.
    """

    name: str
    holds: tuple[str, ...]
    write: Callable[[Job, Path], list[str]]
    tokenizer: bool = False
    copies: int = 1


class Kind:
    """A kind of public checkpoint. One object of each stands in `kinds.KINDS`.

    name: what `--as` says; two ways of saving the same models share one. signs: it is recognised where
    any of them fits. export: how it is written again. needs_base: whether it is a finetune that is read
    beside what it starts from. has_ema: whether `--ema` chooses something.
    """

    name: str
    signs: tuple[Sign, ...] = ()
    export: Export | None = None
    needs_base = False
    has_ema = False

    def recognises(self, names: Collection[str]) -> bool:
        """Whether these are the names of its tensors."""
        return any(fits(sign, names) for sign in self.signs)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        """What becomes of the weights; no numbers are read but those that tell the architecture.

        Raises UserError where they, or the settings, are of something that is not computed here.
        """
        raise NotImplementedError

    def recognises_folder(self, folder: Path) -> bool:
        """Whether a folder of several parts is of this kind."""
        return False

    def read_folder(self, folder: Path, options: Options) -> Source:
        """`read` for a folder of several parts."""
        raise NotImplementedError

    def compare(self, source: Source, base: Path, options: Options, advance: Callable[[int], None]) -> str:
        """Checks a finetune against what it starts from, and says so. Raises UserError where they differ."""
        raise NotImplementedError


def fits(sign: Sign, names: Collection[str]) -> bool:
    """Whether each pattern matches the beginning of some name."""
    return all(any(re.match(pattern, name) for name in names) for pattern in sign)


def open_weights(path: Path, options: Options) -> Weights:
    """The weights of a file, or of a folder with one set of them."""
    if path.is_dir():
        return open_folder(path, variant=options.variant, trust_pickle=options.trust_pickle)
    if options.variant is not None:
        raise UserError(f"{path} is one file, so --variant has nothing to choose from; leave it out")
    return open_file(path, trust_pickle=options.trust_pickle)


def settings_of(path: Path, options: Options) -> Settings:
    """What --config says, else the config.json beside the weights, else nothing."""
    if options.config is not None:
        return Settings.load(options.config)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    return Settings.load(beside) if beside.is_file() else Settings()


def abstract_of(model: ModelConfig, *components: str) -> Abstract:
    """The shapes of a model's components."""
    return abstract_components(model, components)[0]


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer: tokenizer.json, or vocab.json and merges.txt."""
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
