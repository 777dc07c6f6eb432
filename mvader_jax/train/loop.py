"""The training loop: reads top to bottom.

A run lives in `<workdir>/<stage>/`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and at the end
`bundle/`. The same command again goes on where the newest whole checkpoint stands.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mvader_jax import __version__
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import Loader
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import make_global
from mvader_jax.parallel.processes import gather_json
from mvader_jax.settings import modern, to_dict
from mvader_jax.storage.atomic import local, whole_directory
from mvader_jax.storage.bundle import Bundle, carry_over, write_bundle
from mvader_jax.storage.checkpoint import Checkpoints, Restored
from mvader_jax.train.assemble import Run, build_run, data_loader, encode_posterior, saved
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.log import Watch
from mvader_jax.train.profiling import Profile
from mvader_jax.train.state import TrainState, merge

#: Draws the model as it is: (run, averaged model) -> (grid uint8 [H, W, 3], what each picture shows), or None
#: where the stage makes no pictures.
OnSample = Callable[[Run, Bundle], tuple[np.ndarray, list[str]] | None]
#: The exit code of a run that was told to stop (preemption) and saved: start it again to go on.
PREEMPTED = 75
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
    """Trains one stage, or goes on with it. Returns 0 when finished, PREEMPTED after SIGTERM.

    profile: steps to profile, from the third of this call on; the profile lies in `profile/`.
    on_sample: draws the grid of every `sample_every` steps; called in every process. on_step: called after
    every update with its number. Raises UserError for a mistake in the config, Diverged when too many
    updates were bad.
    """
    stage = config.stage(stage_name)
    directory = local(workdir) / stage_name
    with Preemption() as preemption:
        run = build_run(config, stage, workdir, mesh)
        state, loader, first, bad = run.state, data_loader(run, "train"), 0, 0
        # The loop's own variable is the only one that holds the state: the step donates it.
        run = dataclasses.replace(run, state=jax.eval_shape(lambda: state))
        checkpoints = Checkpoints(directory / "checkpoints", keep=stage.keep, keep_every=stage.keep_every)
        watch = Watch(directory, stage, run.rates, quiet=quiet)

        if checkpoints.latest() is not None:
            # Not beside the state that is read: there is room for one.
            state = dataclasses.replace(state, trainable=None, opt_state=None, ema=None)
            restored = checkpoints.restore(saved(run.state), saved(run.shardings))
            state = with_loss_mean(dataclasses.replace(state, **restored.state), run, restored)
            loader.set_state(restored.data)
            first, bad = restored.step, restored.metadata.get("bad_updates", 0)
            watch.say(f"going on from step {first} of {stage.steps}")
            for change in changes(restored.metadata, description(config, stage_name, run)):
                watch.say(f"since that step was saved {change}")

        def save(number: int) -> None:
            metadata = {
                **description(config, stage_name, run),
                "bad_updates": bad,
                "loss_mean": None if state.loss_mean is None else repr(float(state.loss_mean)),
            }
            checkpoints.save(number, saved(state), data=loader_state(loader), metadata=metadata)

        with (
            jax.set_mesh(mesh),
            watch.progress(first, stage.steps),
            Profile(directory / "profile", profile, first) as profiling,
        ):
            for number in range(first + 1, stage.steps + 1):
                batch = make_global(next(loader), mesh)
                if number == first + 1:
                    with watch.aside():
                        watch.flops(run.flops(state, batch))
                profiling.before(number)
                state, metrics = run.step(state, batch)
                watch.after_step(number, metrics)
                if on_step is not None:
                    on_step(number)
                if profiling.after(number, state.step):
                    watch.say(f"the profile is in {profiling.directory}")
                last = number == stage.steps
                stop = preemption.requested(number)
                due = stop or last or number % stage.save_every == 0
                events = watch.bad_updates(wait=due)
                bad += len(events)
                diverged = bool(events) and bad > stage.max_bad_updates
                if due or diverged:
                    save(number)
                if diverged:
                    checkpoints.close()
                    watch.close()
                    raise Diverged(
                        f"{events[-1]}; {skipped(bad)}, max_bad_updates is {stage.max_bad_updates}. Bad updates "
                        f"change nothing; the state of step {number} is saved in {directory / 'checkpoints'}"
                    )
                for event in events:
                    watch.say(f"{event}: the update is skipped ({bad} of at most {stage.max_bad_updates})")
                if stop:
                    checkpoints.close()
                    watch.say(f"told to stop: step {number} is saved, the same command goes on from there")
                    watch.close()
                    return PREEMPTED
                with watch.aside():
                    if last or number % stage.validate_every == 0:
                        watch.write(number, validate(run, state))
                    if on_sample is not None and stage.sample_every and number % stage.sample_every == 0:
                        draw(run, state, number, on_sample, directory, watch)
        checkpoints.close()
        with jax.set_mesh(mesh):
            write_result(run, state, directory / "bundle", config.name, stage_name)
    watch.say(f"finished: {directory / 'bundle'}")
    watch.close()
    return 0


def skipped(bad: int) -> str:
    return "this is the first bad update" if bad == 1 else f"this is bad update number {bad}"


def description(config: TrainConfig, stage_name: str, run: Run) -> dict[str, Any]:
    """What a checkpoint says of its origin: the config, the code, the parameters the stage started from."""
    records = run.start.bundle.records
    return {
        "config": to_dict(config),
        "stage": stage_name,
        "version": code_version(),
        "jax": jax.__version__,
        "start": {name: record.get("sha256") for name, record in sorted(records.items())},
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, what of a description is not as it was; only what bears on the stage's numbers."""
    found = []
    before, now = (
        flatten_dict({"model": config["model"], "stage": config["stages"][stage]}, sep=".")
        for config, stage in ((modern(TrainConfig, d["config"]), d["stage"]) for d in (old, new))
    )
    for name in sorted(now.keys() | before.keys()):
        if name not in before:
            found.append(f"{name} is new: {now[name]}")
        elif name not in now:
            found.append(f"{name}, which was {before[name]}, is gone")
        elif before[name] != now[name]:
            found.append(f"{name} changed from {before[name]} to {now[name]}")
    for name, digest in new["start"].items():
        earlier = old.get("start", {}).get(name)
        if earlier and digest and earlier != digest:
            found.append(f"the {name} that the stage starts from was replaced by another")
    return found


@functools.cache
def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout ('-dirty': with changes)."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{done.stdout.strip()}"


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
    run: Run, state: TrainState, number: int, on_sample: OnSample, directory: Path, watch: Watch
) -> None:
    """Lets `on_sample` draw with the averaged parameters; process 0 keeps the grid."""
    found = on_sample(run, result(run, state))
    if found is not None and watch.chief:
        pixels, labels = found
        path = directory / "samples" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, pixels, {"step": number, "stage": directory.name, "pictures": labels})
        watch.picture(number, "samples", pixels)


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


def write_result(run: Run, state: TrainState, path: Path, config_name: str, stage_name: str) -> None:
    """Writes the finished stage's bundle: its own components, and those of earlier bundles it did not use."""
    bundle = result(run, state)
    if run.stage.objective == "vae":
        bundle = dataclasses.replace(bundle, model=with_latent_scale(run, bundle))
    trained = {
        "stage": stage_name,
        "config": config_name,
        "steps": run.stage.steps,
        "data": data_in_words(run.stage.data),
        "code": code_version(),
    }
    bundle = dataclasses.replace(bundle, records=trained_records(bundle, run.groups, trained))
    with whole_directory(path, overwrite=True) as work:
        write_bundle(work, bundle)
        carry_over(work, run.start.unused)


def trained_records(
    bundle: Bundle, groups: Iterable[str], trained: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What config.json says of a bundle's components, with what trained those of `groups` (paths of parameters)."""
    names = {path.split("/")[0] for path in groups}
    records = {name: dict(bundle.records.get(name, {})) for name in bundle.components}
    for name in names & records.keys():
        records[name]["trained"] = dict(trained)
    if any("/attn2/to_k" in path for path in groups):
        records["unet"].pop("fresh", None)
    return records


def data_in_words(data: DataConfig) -> str:
    """Where a stage's records came from, shortly."""
    paths = data.precomputed or getattr(data.source, "paths", ())
    encoded = "precomputed " if data.precomputed else ""
    return f"{encoded}{data.source.kind}{' of ' if paths else ''}{', '.join(paths)}"


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
    """SIGTERM inside the block asks for a stop at the next step; all processes agree on which.

    Of several processes JAX's own handler notes the signal, in whichever of them, and tells the others.
    """

    def __enter__(self) -> Preemption:
        self._asked = False
        self._several = jax.process_count() > 1
        if not self._several:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. In a job of several processes all ask after every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
