"""The training loop: reads top to bottom.

A run lives in `<workdir>/<stage>/`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and at the end
`bundle/`. The same command again goes on where the newest whole checkpoint stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mvader_jax.data.loader import Loader
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.processes import gather_json
from mvader_jax.storage.atomic import local, whole_directory
from mvader_jax.storage.bundle import Bundle, carry_over, write_bundle
from mvader_jax.storage.checkpoint import Checkpoints, Restored
from mvader_jax.storage.lock import only_user
from mvader_jax.train.assemble import saved
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.log import BadUpdate, Logger
from mvader_jax.train.origin import changes, code_version, description, trained_by, trained_records
from mvader_jax.train.preemption import Preemption
from mvader_jax.train.profiling import Profile
from mvader_jax.train.run import Run, build_run, data_loader
from mvader_jax.train.state import TrainState, merge

#: Draws the model as it is: (run, averaged model) -> (grid uint8 [H, W, 3], what each picture shows), or None
#: where the stage makes no pictures.
OnSample = Callable[[Run, Bundle], tuple[np.ndarray, list[str]] | None]
#: The exit code of a run that was told to stop (preemption) and saved: start it again to go on.
PREEMPTED = 75
#: The same after Ctrl-C.
INTERRUPTED = 130
VALIDATION_BATCHES = 4


class Diverged(UserError):
    """More bad updates than the stage allows; a checkpoint of the last good state was written."""


def train(
    config: TrainConfig,
    stage_name: str,
    workdir: str | Path,
    mesh: Mesh,
    *,
    quiet: bool = False,
    profile: int = 0,
    on_sample: OnSample | None = None,
    on_step: Callable[[int], None] | None = None,
) -> int:
    """Trains one stage, or goes on with it. Returns 0 when finished, PREEMPTED after SIGTERM, INTERRUPTED after
    Ctrl-C; both saved.

    profile: steps to profile, from the third of this call on; the profile lies in `profile/`.
    on_sample: draws the grid of every `sample_every` steps; called in every process. on_step: called after
    every update with its number. Raises UserError for a mistake in the config or while another process trains in
    the same directory, Diverged when too many updates were bad.
    """
    stage = config.stage(stage_name)
    directory = local(workdir) / stage_name
    with only_user(directory), Preemption() as preemption:
        job = begin(config, stage_name, workdir, mesh)
        first = job.step
        logger = Logger(directory, stage, job.run.rates, first=first, quiet=quiet)
        for note in job.notes:
            logger.say(note)
        preemption.working = True
        stop = False
        with (
            contextlib.closing(job.checkpoints),
            contextlib.closing(logger),
            jax.set_mesh(mesh),
            logger.progress(),
            Profile(directory / "profile", profile, first) as profiling,
        ):
            for number in range(first + 1, stage.steps + 1):
                batch = make_global(next(job.loader), mesh)
                for notice in job.loader.notices():
                    logger.say(notice)
                if number == first + 1:
                    with logger.aside():
                        logger.flops(job.run.flops(job.state, batch))
                profiling.before(number)
                job.state, metrics = job.run.step(job.state, batch)
                job.step = number
                logger.after_step(number, metrics, damaged_records=len(job.loader.damaged))
                if on_step is not None:
                    on_step(number)
                if profiling.after(number, job.state.step):
                    logger.say(f"the profile is in {profiling.directory}")
                last = number == stage.steps
                stop = preemption.requested(number)
                due = stop or last or number % stage.save_every == 0
                job.count_bad_updates(logger.bad_updates(wait=due), logger)
                if due:
                    job.save()
                if stop:
                    break
                with logger.aside():
                    if last or number % stage.validate_every == 0:
                        logger.write(number, validate(job.run, job.state))
                    if on_sample is not None and stage.sample_every and number % stage.sample_every == 0:
                        draw(job.run, job.state, number, on_sample, directory, logger)
        preemption.working = False
        if stop:
            why = "interrupted" if preemption.signal == signal.SIGINT else "told to stop"
            logger.say(f"{why}: step {job.step} is saved, the same command goes on from there")
            return INTERRUPTED if preemption.signal == signal.SIGINT else PREEMPTED
        with jax.set_mesh(mesh):
            write_result(job.run, job.state, directory / "bundle", config, stage_name)
        logger.say(f"finished: {directory / 'bundle'}")
    return 0


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


def begin(config: TrainConfig, stage_name: str, workdir: str | Path, mesh: Mesh) -> Job:
    """Builds the stage; where its directory holds a whole checkpoint, the job goes on from the newest."""
    stage = config.stage(stage_name)
    run = build_run(config, stage, workdir, mesh)
    checkpoints = Checkpoints(
        Path(workdir) / stage_name / "checkpoints", keep=stage.keep, keep_every=stage.keep_every
    )
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


def draw(
    run: Run, state: TrainState, number: int, on_sample: OnSample, directory: Path, logger: Logger
) -> None:
    """Lets `on_sample` draw with the averaged parameters; process 0 keeps the grid."""
    found = on_sample(run, result(run, state))
    if found is not None and logger.chief:
        pixels, labels = found
        path = directory / "samples" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, pixels, {"step": number, "stage": directory.name, "pictures": labels})
        logger.picture(number, "samples", pixels)


def validate(run: Run, state: TrainState) -> dict[str, float]:
    """Mean metrics of the averaged parameters on held-out batches, with the same noise every time."""
    total: dict[str, np.ndarray] = {}
    for index, batch in enumerate(held_out_batches(run)):
        metrics = run.evaluate(state.ema, state.frozen, batch, jax.random.fold_in(jax.random.key(0), index))
        for name, value in metrics.items():
            total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
    return {f"validation/{name}": float(v[0] / v[1]) for name, v in total.items() if v[1] > 0}


def held_out_batches(run: Run) -> Iterator[Any]:
    """The batches that a stage is validated on, the same every time."""
    loader = data_loader(run, "validation")
    for _ in range(VALIDATION_BATCHES):
        yield make_global(next(loader), run.mesh)


def result(run: Run, state: TrainState) -> Bundle:
    """The averaged model of a state, as a bundle of the components the stage computes with."""
    return dataclasses.replace(run.start.bundle, components=merge(state.ema, state.frozen))


def write_result(run: Run, state: TrainState, path: Path, config: TrainConfig, stage_name: str) -> None:
    """Writes the finished stage's bundle: its own components, and those of earlier bundles it did not use."""
    bundle = result(run, state)
    model = run.stage.objective.finished(bundle.model, bundle.components, held_out_batches(run))
    bundle = dataclasses.replace(bundle, model=model)
    trained = trained_by(config, stage_name, run.stage.steps, code_version())
    bundle = dataclasses.replace(bundle, records=trained_records(bundle, run.groups, trained))
    with whole_directory(path, overwrite=True) as work:
        write_bundle(work, bundle)
        carry_over(work, run.start.unused)
