"""A training config: a model, and the stages that train it. `configs/*.py` build one each."""

from __future__ import annotations

import dataclasses
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mvader_jax.bounds import (
    Bound,
    ComputeDtype,
    FrozenDtype,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    RegularExpression,
    Seed,
    any_number,
    between,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.errors import UserError
from mvader_jax.lora.config import LoraConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.settings import Checked, convert, nearest, override, type_hints
from mvader_jax.train.objectives import Objective
from mvader_jax.train.optim.optimizer import OptimizerConfig
from mvader_jax.train.shipped import find_config

#: A mean is exceeded by every second loss.
_RATIO = Bound(lambda x: x == 0 or x > 1, "0, or more than 1")
#: Configs and stages name directories.
_Name = Annotated[
    str,
    Bound(lambda x: x not in ("", ".", "..") and not {"/", "\0"} & set(x), "a directory's name, without /"),
]


@dataclasses.dataclass(frozen=True)
class Group(Checked):
    """Parameters that train together."""

    #: Which: a regular expression over the whole of `component/path`, as in `unet/.*`. The first group that matches a
    #: parameter has it; one that no group matches is frozen.
    parameters: RegularExpression
    #: Peak learning rate.
    learning_rate: NonNegativeFloat


@dataclasses.dataclass(frozen=True)
class Judges(Checked):
    """What scores the pictures of `validate_with` (docs/scores.md)."""

    #: Bundle of FID's Inception, for fid and kid.
    inception: str | None = None
    #: Bundle of a CLIP, for cmmd, clip and clip-image.
    clip: str | None = None
    #: Steps between scores, and once at the end.
    every: PositiveInt = 1000
    #: Pictures drawn, of the first held-out captions; compared with the pictures that these belong to.
    pictures: Annotated[int, between(2, 10_000)] = 64


@dataclasses.dataclass(frozen=True)
class Stage(Checked):
    """One training run of the model: what trains, on what, for how long."""

    #: What is minimised, with its own settings.
    objective: Objective
    #: What trains, at which rate, by names of one's own.
    groups: Mapping[str, Group]
    #: Updates in all.
    steps: PositiveInt
    #: Samples of an update, over all devices and microbatches.
    batch_size: PositiveInt
    #: What is read.
    data: DataConfig
    #: Low-rank changes that train in place of the weights, by component; a group names their factors, as in
    #: `lora/unet/.*`. See docs/lora.md.
    lora: Mapping[str, LoraConfig] = dataclasses.field(default_factory=dict)
    #: Where it starts: stages of the same config (their finished bundles) or bundle names and paths, in order; later
    #: ones replace components of earlier ones. A component that none holds is made anew.
    init: tuple[str, ...] = ()
    #: How what trains is moved.
    optimizer: OptimizerConfig = OptimizerConfig()
    #: Microbatches per step: a batch is computed in so many parts, one after the other.
    accumulate: PositiveInt = 1
    #: Groups into which the rows of a batch are laid out (data/rows.py). 0: as many as the devices that share a
    #: microbatch, times the microbatches, so that batches and noise depend on the mesh. A fixed multiple of that
    #: number makes them the same on every mesh that it fits.
    row_groups: NonNegativeInt = 0
    #: Which activations of the UNet and the decoder are kept for the backward pass: all, the results of matrix
    #: products and convolutions, or what enters a block.
    remat: Remat = "none"
    #: What is computed in; parameters that train stay float32.
    dtype: ComputeDtype = "float32"
    #: What frozen parameters are kept in. int8, int4: the matrices of a frozen decoder's layers as integers with
    #: scales, the rest in `dtype`.
    frozen_dtype: FrozenDtype = "float32"
    #: Of fresh parameters, noise and dropout.
    seed: Seed = 0
    #: Steps between lines of the log.
    log_every: PositiveInt = 50
    #: Steps between checkpoints.
    save_every: PositiveInt = 500
    #: How many of the newest checkpoints stay.
    keep: PositiveInt = 2
    #: Checkpoints whose step is a multiple of it stay for good; 0: none.
    keep_every: NonNegativeInt = 0
    #: Steps between validations on held-out batches, and one at the end; 0: none.
    validate_every: NonNegativeInt = 500
    #: Steps between grids of pictures; 0: none.
    sample_every: NonNegativeInt = 0
    #: Prompts of the grid, their parts separated by ` | `; held-out records where there are none.
    sample_prompts: tuple[str, ...] = ()
    #: Sampling steps of the grid's pictures.
    sample_steps: Annotated[int, between(1, 1000)] = 50
    #: Classifier-free guidance of the grid's pictures.
    sample_guidance: Annotated[float, any_number("negative guidance turns away")] = 8.0
    #: Scores of pictures drawn by the averaged model: fid, kid, cmmd, clip, clip-image. The model that is best by the
    #: first of them is kept as the bundle `best/`. The pictures are drawn as the grid's are.
    validate_with: tuple[str, ...] = ()
    #: The networks that score.
    judges: Judges = Judges()
    #: An update is bad, and changes nothing, when its loss or gradient is not finite, or its loss is more than
    #: this many times the running mean of the losses (0: however large).
    max_loss_ratio: Annotated[float, _RATIO] = 0.0
    #: One bad update more than this stops the run.
    max_bad_updates: NonNegativeInt = 0

    moved: ClassVar[Mapping[str, str]] = {
        name: f"objective.{name}"
        for name in (
            "dropout",
            "null",
            "posterior",
            "timestep_bias",
            "images",
            "picture_queries",
            "similarity_scale",
            "kl_weight",
        )
    }


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """A model and the stages that train it."""

    #: Names the directory of the runs, `runs/NAME`.
    name: _Name
    #: Every component's architecture. Parts that are left out are those of the stage's `init` bundles; where all are
    #: left out, so are embedder and schedule.
    model: ModelConfig = ModelConfig()
    #: By names of one's own, as `--stage` and other stages' `init` have them.
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.stages:
            convert(_Name, name, "a name of TrainConfig.stages")

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises UserError naming the nearest for an unknown one."""
        if name not in self.stages:
            raise UserError(f"unknown stage {name!r} in config {self.name!r}; {nearest(name, self.stages)}")
        return self.stages[name]


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs the `get_config()` of a config (named as of `find_config`) and applies overrides.

    Raises UserError when there is no such config, it cannot be run, has no such function, or an override names no key.
    """
    path = find_config(name)
    try:
        module = runpy.run_path(str(path))
        if "get_config" not in module:
            raise UserError(f"{path} defines no get_config(); a config file returns a TrainConfig from it")
        config = module["get_config"]()
    except UserError:
        raise
    except Exception as error:  # it is code of a person's own
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}{_line(error, path)}: {said}{_meant(error)}") from None
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a TrainConfig")
    return override(config, overrides)


def _line(error: Exception, path: Path) -> str:
    """ ", line N" of a config file where an error came from."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""


def _meant(error: Exception) -> str:
    """What an unknown keyword was meant to be, or where one of an earlier version stands now."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls: Any = next((cls for cls in _known(Checked) if found and cls.__name__ == found[1]), None)
    if found is None or cls is None:
        return ""
    place = getattr(cls, "moved", {}).get(found[2])
    return f"; it has moved to {place.lstrip('.')}" if place else f"; {nearest(found[2], type_hints(cls))}"


def _known(cls: type[Checked]) -> Iterator[type[Checked]]:
    """The dataclasses that derive from one."""
    derived: type[Checked]
    for derived in cls.__subclasses__():
        yield from _known(derived)
        if dataclasses.is_dataclass(derived):
            yield derived
