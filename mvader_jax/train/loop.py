"""The training loop: reads top to bottom.

A run lives in `<workdir>/<stage>/`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and at the end
`bundle/`. The same command again goes on where the newest whole checkpoint stands.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mvader_jax import __version__
from mvader_jax.bundle import Bundle, carry_over, staged, write_bundle
from mvader_jax.checkpoint import Checkpoints
from mvader_jax.config import ModelConfig, to_dict
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import make_global
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.run import Run, build_run, data_loader, encode_posterior, saved
from mvader_jax.train.state import TrainState, merge
from mvader_jax.train.watch import Watch

#: The exit code of a run that was told to stop (preemption) and saved: start it again to go on.
PREEMPTED = 75
VALIDATION_BATCHES = 4


class Diverged(UserError):
    """The loss is not finite any more; a checkpoint of the last good state was written."""


def train(
    config: TrainConfig,
    stage_name: str,
    workdir: str | Path,
    mesh: Mesh,
    *,
    quiet: bool = False,
    on_sample: Callable[[Bundle, Path], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> int:
    """Trains one stage, or goes on with it. Returns 0 when finished, PREEMPTED after SIGTERM.

    on_sample: called every `sample_every` steps on process 0 with the averaged model as a bundle and
    the path of the PNG to write. on_step: called after every update with its number. Raises UserError
    for a mistake in the config, Diverged when the loss stops being finite.
    """
    stage = config.stage(stage_name)
    directory = Path(workdir) / stage_name
    run = build_run(config, stage, workdir, mesh)
    state, loader, first = run.state, data_loader(run, "train"), 0
    checkpoints = Checkpoints(directory / "checkpoints", keep=stage.keep)
    watch = Watch(directory, stage, run.rates, quiet=quiet)

    if checkpoints.latest() is not None:
        restored = checkpoints.restore(saved(state), saved(run.shardings))
        state = dataclasses.replace(state, **restored.state)
        loader.set_state(restored.data)
        first = restored.step
        watch.say(f"going on from step {first} of {stage.steps}")

    def save(step: int) -> None:
        metadata = {"config": to_dict(config), "stage": stage_name, "version": __version__}
        checkpoints.save(step, saved(state), data=loader.get_state(), metadata=metadata)

    bad = 0
    with Preemption() as preemption, jax.set_mesh(mesh), watch.progress(first, stage.steps):
        for number in range(first + 1, stage.steps + 1):
            state, metrics = run.step(state, make_global(next(loader), mesh))
            bad += watch.after_step(number, metrics)
            if on_step is not None:
                on_step(number)
            stop = preemption.requested(number)
            if bad > stage.max_bad_updates or stop or number % stage.save_every == 0 or number == stage.steps:
                save(number)
            if bad > stage.max_bad_updates:
                checkpoints.close()
                raise Diverged(
                    f"the loss stopped being finite at step {number} or the one before; bad updates change nothing, "
                    f"and the state is saved in {directory / 'checkpoints'}"
                )
            if stop:
                checkpoints.close()
                watch.say(f"told to stop: step {number} is saved, the same command goes on from there")
                return PREEMPTED
            if number % stage.validate_every == 0 or number == stage.steps:
                watch.write(number, validate(run, state))
            if on_sample is not None and stage.sample_every and number % stage.sample_every == 0:
                on_sample(result(run, state), directory / "samples" / f"{number:07d}.png")
    checkpoints.close()
    write_result(run, state, directory / "bundle", stage_name)
    watch.say(f"finished: {directory / 'bundle'}")
    watch.close()
    return 0


def validate(run: Run, state: TrainState) -> dict[str, float]:
    """Mean metrics of the averaged parameters on held-out batches, with the same noise every time."""
    loader = data_loader(run, "validation")
    total: dict[str, np.ndarray] = {}
    for index in range(VALIDATION_BATCHES):
        batch = make_global(next(loader), run.mesh)
        metrics = run.evaluate(state.ema, state.frozen, batch, jax.random.fold_in(jax.random.key(0), index))
        for name, value in metrics.items():
            total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
    return {f"validation/{name}": float(v[0] / v[1]) for name, v in total.items() if v[1] > 0}


def result(run: Run, state: TrainState) -> Bundle:
    """The averaged model of a state, as a bundle of the components the stage computes with."""
    return dataclasses.replace(run.start.bundle, components=merge(state.ema, state.frozen))


def write_result(run: Run, state: TrainState, path: Path, stage_name: str) -> None:
    """Writes the finished stage's bundle: its own components, and those of earlier bundles it did not use."""
    bundle = result(run, state)
    if run.stage.objective == "vae":
        bundle = dataclasses.replace(bundle, model=with_latent_scale(run, bundle))
    trained = {path.split("/")[0] for path in run.groups}
    records = {
        name: {**bundle.records.get(name, {}), **({"trained": stage_name} if name in trained else {})}
        for name in bundle.components
    }
    bundle = dataclasses.replace(bundle, records=records)
    with staged(path, overwrite=True) as work:
        write_bundle(work, bundle)
        carry_over(work, run.start.unused)


def with_latent_scale(run: Run, bundle: Bundle) -> ModelConfig:
    """The model with `vae.scaling_factor` set so that latents have unit variance (Rombach et al. 2022, G)."""
    assert bundle.model.vae is not None
    encode = jax.jit(functools.partial(encode_posterior, bundle.model.vae))
    loader = data_loader(run, "validation")
    squares = [
        float(
            jnp.mean(
                jnp.square(encode(bundle.components["vae"], make_global(next(loader), run.mesh)["pixels"]))
            )
        )
        for _ in range(VALIDATION_BATCHES)
    ]
    scale = round(1.0 / float(np.sqrt(np.mean(squares))), 5)
    return dataclasses.replace(bundle.model, vae=dataclasses.replace(bundle.model.vae, scaling_factor=scale))


class Preemption:
    """SIGTERM inside the block asks for a stop at the next step; all processes agree on which."""

    def __enter__(self) -> Preemption:
        self._asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
