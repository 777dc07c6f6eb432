"""Whether a stage's run is over: known from its files, before anything is loaded or compiled."""

from __future__ import annotations

from pathlib import Path

from mvader_jax.errors import UserError
from mvader_jax.settings import to_dict
from mvader_jax.storage.bundle_config import read_config
from mvader_jax.storage.checkpoint import newest_metadata
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.origin import changes
from mvader_jax.train.snapshot import steps


def finished(config: TrainConfig, stage_name: str, workdir: str | Path) -> list[str]:
    """What to say of a stage whose last step is saved and whose bundle is written; nothing where work is left.

    Settings that have changed since are named: they do nothing any more.
    """
    stage, directory = config.stage(stage_name), Path(workdir) / stage_name
    bundle, saved = directory / "bundle", steps(directory)
    if not saved or saved[-1] != stage.steps or not _written(bundle, stage_name, stage.steps):
        return []
    # Of a run that began anew in the place of another, the last step may be saved and the bundle be the other's.
    if _time(bundle / "config.json") < _time(directory / "checkpoints" / str(stage.steps)):
        return []
    said = [f"finished: {bundle} is the result of all {stage.steps:,} steps"]
    metadata = newest_metadata(directory / "checkpoints")
    if metadata:
        now = {"config": to_dict(config), "stage": stage_name, "start": {}}
        # Microbatches are chosen with the mesh where none is named.
        found = [change for change in changes(metadata, now) if not change.startswith("stage.accumulate ")]
        said += [f"since it was trained {change}" for change in found]
        said += ["to train with that, name another --workdir, or more steps"] if found else []
    return said


def _written(bundle: Path, stage_name: str, done: int) -> bool:
    try:
        records = read_config(bundle)["components"].values()
    except UserError:
        return False
    trained = [record["trained"] for record in records if isinstance(record.get("trained"), dict)]
    return any((one.get("stage"), one.get("steps")) == (stage_name, done) for one in trained)


def _time(path: Path) -> float:
    return path.stat().st_mtime
