"""A run of a stage and where it stands: begun, or gone on with from its newest whole checkpoint."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mvader_jax.data.loader import Loader
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.processes import gather_json
from mvader_jax.storage.checkpoint import Checkpoints, Restored
from mvader_jax.train.assemble import saved
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.log import BadUpdate, Logger
from mvader_jax.train.origin import changes, description
from mvader_jax.train.run import Run, build_run, data_loader
from mvader_jax.train.samples import check_samples
from mvader_jax.train.state import TrainState


class Diverged(UserError):
    """More bad updates than the stage allows; a checkpoint of the last good state was written."""


@dataclasses.dataclass
class Job:
    """A run and where it stands. Its state is held here alone: the step donates it.

    step: updates done; bad: those of them that changed nothing; origin: what checkpoints say of where they come
    from; notes: what a person should know before it goes on.
    """

    run: Run
    state: TrainState
    loader: Loader
    checkpoints: Checkpoints
    origin: dict[str, Any]
    step: int = 0
    bad: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def next_batch(self, logger: Logger) -> dict[str, Any]:
        """The rows of the next step, on the mesh; says what there is to say of damaged records."""
        batch = make_global(next(self.loader), self.run.mesh)
        logger.say(*self.loader.notices())
        return batch

    def save(self) -> None:
        """Saves the step in the background."""
        mean = self.state.loss_mean
        metadata = {
            **self.origin,
            "bad_updates": self.bad,
            "loss_mean": None if mean is None else repr(float(mean)),
        }
        self.checkpoints.save(self.step, saved(self.state), data=loader_state(self.loader), metadata=metadata)

    def count_bad_updates(self, events: Sequence[BadUpdate], logger: Logger) -> None:
        """Says which updates were skipped. Raises Diverged, the step saved, when there were too many."""
        self.bad += len(events)
        most = self.run.stage.max_bad_updates
        if events and self.bad > most:
            self.save()
            raise Diverged(
                f"{events[-1]}; {skipped(self.bad)}, max_bad_updates is {most}. Bad updates change nothing; the "
                f"state of step {self.step} is saved in {self.checkpoints.directory}"
            )
        for event in events:
            logger.say(f"{event}: the update is skipped ({self.bad} of at most {most})")

    def damage(self) -> list[str]:
        """In a sentence, the damaged records that all processes have passed over. Together."""
        reasons = collections.Counter(reason for *_, reason in loader_state(self.loader)["damaged"])
        if not reasons:
            return []
        most = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return [f"{reasons.total()} damaged records were passed over: {most}"]


def begin(config: TrainConfig, stage_name: str, workdir: str | Path, mesh: Mesh) -> Job:
    """Builds the stage; where its directory holds a whole checkpoint, the job goes on from the newest."""
    stage = config.stage(stage_name)
    run = build_run(config, stage, workdir, mesh)
    checkpoints = Checkpoints(
        Path(workdir) / stage_name / "checkpoints", keep=stage.keep, keep_every=stage.keep_every
    )
    # What would end the run at its first grid or validation ends it now.
    check_samples(stage, run.start.bundle)
    data_loader(run, "validation")
    origin = description(config, stage_name, run)
    job = Job(run, run.state, data_loader(run, "train"), checkpoints, origin)
    job.run = run = dataclasses.replace(run, state=jax.eval_shape(lambda: job.state))
    if checkpoints.latest() is None:
        return job
    # Not beside the state that is read: there is room for one.
    job.state = dataclasses.replace(job.state, trainable=None, opt_state=None, ema=None)
    restored = checkpoints.restore(saved(run.state), saved(run.shardings))
    job.state = with_loss_mean(dataclasses.replace(job.state, **restored.state), run, restored)
    job.loader.set_state(restored.data)
    job.step, job.bad = restored.step, restored.metadata.get("bad_updates", 0)
    if job.step > stage.steps:
        raise UserError(
            f"step {job.step} is saved in {checkpoints.directory}, but steps is {stage.steps}; accepted: "
            f"{job.step} or more, or another place for the run"
        )
    job.notes.append(f"going on from step {job.step} of {stage.steps}")
    for change in changes(restored.metadata, origin):
        job.notes.append(f"since that step was saved {change}")
    return job


def skipped(bad: int) -> str:
    return "this is the first bad update" if bad == 1 else f"this is bad update number {bad}"


def loader_state(loader: Loader) -> dict[str, Any]:
    """The loader's state for all processes: each has passed over damaged records of its own."""
    states = gather_json(loader.get_state())
    damaged = {(record[0], record[1]): record for state in states for record in state["damaged"]}
    return {**states[0], "damaged": list(damaged.values())}


def with_loss_mean(state: TrainState, run: Run, restored: Restored) -> TrainState:
    """The state with the running mean of its losses as the checkpoint has it, where the stage asks for one."""
    text = restored.metadata.get("loss_mean")
    if state.loss_mean is None or text is None:
        return state
    mean = jax.device_put(np.float32(text), run.shardings.loss_mean)
    return dataclasses.replace(state, loss_mean=mean)
