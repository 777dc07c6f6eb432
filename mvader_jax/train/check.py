"""Settings of a stage that would do nothing are refused, in one sentence that names what they need."""

from __future__ import annotations

from mvader_jax.errors import UserError
from mvader_jax.scores.metrics import METRICS
from mvader_jax.train.config import Judges, Stage
from mvader_jax.train.optim.optimizer import OptimizerConfig


def check_stage(stage: Stage) -> None:
    """Raises UserError for settings that do nothing beside the others, or that the objective cannot do."""
    objective = stage.objective
    if not stage.groups:
        raise UserError("the stage names no groups of parameters: nothing would train")
    objective.check(stage.data)
    if stage.accumulate > 1 and not objective.accumulates:
        raise UserError(
            f"the {objective.kind} objective compares all rows of a batch; it cannot accumulate microbatches"
        )
    if stage.remat != "none" and not objective.rematerialises:
        raise UserError(
            f"remat does nothing for the {objective.kind} objective: its networks keep everything"
        )
    _check_drawing(stage)
    _check_scores(stage)
    _check_decay(stage.optimizer)


def _check_drawing(stage: Stage) -> None:
    drawing = stage.objective.drawing()
    if stage.sample_every and drawing is None:
        raise UserError(
            f"sample_every is {stage.sample_every}, but the {stage.objective.kind} objective draws nothing"
        )
    if stage.sample_prompts and not stage.sample_every:
        raise UserError("sample_prompts are drawn every sample_every steps, which is 0: none would be")
    if stage.sample_prompts and drawing is not None and not drawing.reads_prompts:
        raise UserError(
            f"sample_prompts do nothing for the {stage.objective.kind} objective, which draws held-out pictures"
        )


def _check_scores(stage: Stage) -> None:
    if not stage.validate_with and stage.judges != Judges():
        raise UserError("judges do nothing without validate_with, which names scores, as in ['fid', 'clip']")
    for name in stage.validate_with:
        if name not in METRICS:
            raise UserError(f"validate_with names {name!r}; accepted: {', '.join(METRICS)}")
        if stage.validate_with.count(name) > 1:
            raise UserError(f"validate_with names {name!r} twice; name it once")
        network = METRICS[name].network
        if getattr(stage.judges, network) is None:
            raise UserError(
                f"validate_with names {name!r}, which needs {network}'s weights: set judges.{network} to their bundle; "
                "docs/scores.md says how to make one"
            )
    needed = {METRICS[name].network for name in stage.validate_with}
    for network in ("inception", "clip"):
        if getattr(stage.judges, network) is not None and network not in needed:
            raise UserError(f"judges.{network} does nothing: validate_with names no score that looks with it")
    drawing = stage.objective.drawing()
    if stage.validate_with and (drawing is None or not drawing.reads_prompts):
        raise UserError(
            f"validate_with scores pictures of prompts, and the {stage.objective.kind} objective draws none"
        )


def _check_decay(optimizer: OptimizerConfig) -> None:
    for name in ("decay_steps", "final_fraction"):
        value = getattr(optimizer, name)
        if value and optimizer.decay == "constant":
            raise UserError(f"optimizer.{name} is {value}, but optimizer.decay is constant: nothing decays")
