"""The training loop: reads top to bottom.

A run lives in `<workdir>/<stage>/`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and at the end
`bundle/`. The same command again goes on where the newest whole checkpoint stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mvader_jax.images.png import save_png
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.processes import first_process
from mvader_jax.parallel.sharding import replicated
from mvader_jax.storage.atomic import check_place, local, whole_directory
from mvader_jax.storage.bundle import Bundle
from mvader_jax.storage.bundle_config import not_ours
from mvader_jax.storage.lock import only_user
from mvader_jax.train.banner import banner
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.job import Job, begin
from mvader_jax.train.log import Logger
from mvader_jax.train.lora import LORA, applied, as_lora
from mvader_jax.train.origin import code_version, trained_by, trained_records
from mvader_jax.train.preemption import Preemption
from mvader_jax.train.profiling import Profile
from mvader_jax.train.run import Run, data_loader
from mvader_jax.train.scoring import Scores
from mvader_jax.train.state import TrainState, merge

#: Draws the model as it is: (run, averaged model) -> (grid uint8 [H, W, 3], what each picture shows), or None
#: where the stage makes no pictures.
OnSample = Callable[[Run, Bundle], tuple[np.ndarray, list[str]] | None]
#: The exit code of a run that was told to stop (preemption) and saved: start it again to go on.
PREEMPTED = 75
#: The same after Ctrl-C.
INTERRUPTED = 130
VALIDATION_BATCHES = 4


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
    every update with its number. Raises UserError for a mistake in the config, while another process trains in
    the same directory or its `bundle/` holds more than a bundle, Diverged when too many updates were bad.
    """
    stage = config.stage(stage_name)
    directory = local(workdir) / stage_name
    # At the end it would be too late.
    for name in ("bundle", "best"):
        check_place(directory / name, overwrite=True, not_ours=not_ours)
    with only_user(directory), Preemption() as preemption:
        job = begin(config, stage_name, workdir, mesh)
        scores = Scores(job.run, directory) if stage.validate_with else None
        first = job.step
        logger = Logger(directory, stage, job.run.rates, first=first, quiet=quiet)
        logger.say(*job.notes, *([] if quiet else banner(job)))
        preemption.working, stop = True, False
        with (
            contextlib.closing(job.checkpoints),
            contextlib.closing(logger),
            jax.set_mesh(mesh),
            logger.progress(),
            Profile(directory / "profile", profile, first) as profiling,
        ):
            for number in range(first + 1, stage.steps + 1):
                batch = job.next_batch(logger)
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
                last, stop = number == stage.steps, preemption.requested(number)
                due = stop or last or number % stage.save_every == 0
                job.count_bad_updates(logger.bad_updates(wait=due), logger)
                if due:
                    job.save()
                if stop:
                    break
                with logger.aside():
                    if stage.validate_every and (last or number % stage.validate_every == 0):
                        logger.write(number, validate(job.run, job.state))
                    if on_sample is not None and stage.sample_every and number % stage.sample_every == 0:
                        draw(job.run, job.state, number, on_sample, directory, logger)
                    if scores is not None and (last or number % stage.judges.every == 0):
                        score(job, scores, config, stage_name, directory, logger)
        preemption.working = False
        logger.say(*job.damage())
        if stop:
            return stopped(job, preemption, logger)
        with jax.set_mesh(mesh):
            write_result(job, directory / "bundle", config, stage_name)
        logger.say(f"finished: {directory / 'bundle'}")
    return 0


def stopped(job: Job, preemption: Preemption, logger: Logger) -> int:
    """Says what is saved; the exit code."""
    by_hand = preemption.signal == signal.SIGINT
    why = "interrupted" if by_hand else "told to stop"
    logger.say(f"{why}: step {job.step} is saved, the same command goes on from there")
    return INTERRUPTED if by_hand else PREEMPTED


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


def held_out_batches(run: Run) -> Iterator[dict[str, Any]]:
    """The batches that a stage is validated on, the same every time."""
    loader = data_loader(run, "validation")
    for _ in range(VALIDATION_BATCHES):
        yield make_global(next(loader), run.mesh)


def result(run: Run, state: TrainState) -> Bundle:
    """The averaged model of a state, as a bundle of the components the stage computes with."""
    return dataclasses.replace(
        run.start.bundle, components=applied(merge(state.ema, state.frozen), run.stage.lora)
    )


def score(
    job: Job, scores: Scores, config: TrainConfig, stage_name: str, directory: Path, logger: Logger
) -> None:
    """Writes the scores of the averaged model, and keeps it where it is the best so far."""
    values = scores(result(job.run, job.state))
    logger.write(job.step, values)
    if scores.is_best(job.step, values):
        write_result(job, directory / "best", config, stage_name)
        scores.keep(job.step, values)


def write_result(job: Job, path: Path, config: TrainConfig, stage_name: str) -> None:
    """Writes a bundle of the averaged model: its own components, and those of earlier bundles it did not use."""
    run = job.run
    bundle = run.stage.objective.finished(result(run, job.state), held_out_batches(run))
    trained = trained_by(config, stage_name, job.step, code_version())
    bundle = dataclasses.replace(bundle, records=trained_records(bundle, run.groups, trained))
    with whole_directory(path, overwrite=True, not_ours=not_ours) as work:
        run.start.write(work, bundle, run.groups)
    if run.stage.lora:
        # Beside the bundle: of the finished one by the name that others know.
        name = "lora" if path.name == "bundle" else path.name
        write_factors(run, job.state, path.with_name(f"{name}.safetensors"))


def write_factors(run: Run, state: TrainState, file: Path) -> None:
    """Writes the averaged factors of a LoRA as a file by themselves, as others share them."""
    from mvader_jax.convert.lora.files import write_lora  # it lies above

    whole = jax.jit(lambda tree: tree, out_shardings=replicated(run.mesh))(state.ema[LORA])
    lora = as_lora(jax.tree.map(np.asarray, whole), run.stage.lora)
    if first_process():
        write_lora(file, lora, run.start.bundle.model, overwrite=True)
