"""A bundle out of any checkpoint of a run, also of one that is going on: nothing of the run is touched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvader_jax.errors import UserError
from mvader_jax.models.quantised import quantised
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.settings import from_dict, modern
from mvader_jax.storage.atomic import whole_directory
from mvader_jax.storage.bundle import Bundle, load_bundle
from mvader_jax.storage.bundle_config import RUN, not_ours
from mvader_jax.storage.checkpoint import read_step
from mvader_jax.train.assemble import split
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.lora import applied
from mvader_jax.train.origin import trained_by, trained_records
from mvader_jax.train.start import Start, gather_start
from mvader_jax.train.state import merge


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A step of a stage's run. raw: the parameters themselves in place of their average."""

    directory: Path
    step: int
    raw: bool = False

    @classmethod
    def of(cls, name: str | Path, *, raw: bool = False) -> Snapshot:
        """The step that "RUN/STAGE@STEP" names, or without @STEP the newest. Raises UserError where there is none."""
        match = RUN.fullmatch(str(name))
        assert match is not None
        directory = Path(match["directory"])
        found = steps(directory)
        if not found:
            raise UserError(f"{directory} is no stage of a run with a checkpoint: it has no checkpoints/STEP")
        step = found[-1] if match["step"] is None else int(match["step"])
        if step not in found:
            raise UserError(
                f"{directory} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
            )
        return cls(directory, step, raw)


def steps(directory: Path) -> list[int]:
    """The steps of a stage's run that are whole on disk, in order."""
    places = (directory / "checkpoints").glob("*") if directory.is_dir() else ()
    return sorted(int(place.name) for place in places if place.name.isdigit() and place.is_dir())


def load_snapshot(
    snapshot: Snapshot, *, mesh: Mesh | None = None, dtype: str | None = None, integers: str | None = None
) -> Bundle:
    """The model as the step has it, with all components that the stage's result would hold.

    dtype, integers: as `load_bundle` takes them. Raises UserError as `_gather`, and as `load_bundle` for `integers`.
    """
    bundle, start, _ = _gather(snapshot, mesh)
    for name, path in start.unused.items():
        other = load_bundle(path.parent, components=[name], mesh=mesh)
        bundle.components[name], bundle.records[name] = other.components[name], other.records[name]
    if dtype is not None:
        bundle.components = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            bundle.components,
        )
    if integers is not None:
        bundle.components = quantised(bundle.components, integers)
    return bundle


def write_snapshot(snapshot: Snapshot, out: Path, *, overwrite: bool = False) -> None:
    """Writes the same as a bundle. Raises UserError as `load_snapshot`, and where `out` cannot be written."""
    bundle, start, groups = _gather(snapshot, None)
    with whole_directory(out, overwrite=overwrite, not_ours=not_ours, sources=[snapshot.directory]) as work:
        start.write(work, bundle, groups)


def _gather(snapshot: Snapshot, mesh: Mesh | None) -> tuple[Bundle, Start, dict[str, str]]:
    """(the model, what the stage started from, the group of every path that trained).

    Raises UserError where the step cannot be read, or the bundles that the stage started from are gone or others.
    """
    directory = snapshot.directory
    saved, metadata = read_step(
        directory / "checkpoints" / str(snapshot.step), "trainable" if snapshot.raw else "ema"
    )
    config = from_dict(TrainConfig, modern(TrainConfig, metadata["config"]), f"the config of {directory}")
    stage = config.stage(metadata["stage"])
    place = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(place):
        start = gather_start(config, stage, directory.parent, place)
    for name, digest in metadata.get("start", {}).items():
        mine = start.bundle.records.get(name, {}).get("sha256")
        if digest and mine and digest != mine:
            raise UserError(f"the {name} that {directory} started from was replaced by another since")
    trainable, frozen, groups = split(start.bundle.components, stage)
    trainable = jax.tree.map(
        lambda old, new: jax.device_put(new, getattr(old, "sharding", None)), trainable, saved
    )
    bundle = dataclasses.replace(start.bundle, components=applied(merge(trainable, frozen), stage.lora))
    trained = trained_by(config, metadata["stage"], snapshot.step, metadata.get("version", "unknown"))
    return dataclasses.replace(bundle, records=trained_records(bundle, groups, trained)), start, groups
