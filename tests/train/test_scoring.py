"""Scores while a stage trains: written to both logs, the best model kept, gone on with after a stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import judges
import micro
import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.scores.metrics import METRICS
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.train import loop
from mvader_jax.train.config import Judges, TrainConfig
from mvader_jax.train.scoring import Scores


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored")
    for stage in ("vae", "contrastive"):
        save_bundle(path / stage / "bundle", micro.bundle(micro.NANO))
    judges.save_clip(path / "clip")
    judges.save_inception(path / "inception")
    return path


def config_of(workdir: Path, *names: str, **changes: Any) -> TrainConfig:
    config = micro.nano_config(steps=6, log_every=6, save_every=2, validate_every=0, sample_steps=2)
    judged = {name: str(workdir / name) for name in {METRICS[score].network for score in names}}
    scored = Judges(**judged, every=2, pictures=5)
    stage = dataclasses.replace(
        config.stages["diffusion"], validate_with=names, judges=dataclasses.replace(scored, **changes)
    )
    return dataclasses.replace(config, stages={**config.stages, "diffusion": stage})


def rows(workdir: Path) -> dict[int, dict[str, float]]:
    lines = (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {row["step"]: row for row in found if "scores/clip" in row}


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_scores_are_logged_and_the_best_model_kept(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([30.0, 20.0, 25.0])
    real = Scores.__call__

    def scored(self: Scores, bundle: Any) -> dict[str, float]:
        values = real(self, bundle)
        assert list(values) == [f"scores/{name}" for name in METRICS]
        assert 0 <= values["scores/clip"] <= 100 and values["scores/cmmd"] > 0
        assert values["scores/fid"] > 0 and np.isfinite(values["scores/kid"])
        # The same model gives the same numbers: prompts and noise are the same every time.
        assert real(self, bundle) == values
        return {**values, "scores/fid": next(told)}

    monkeypatch.setattr(Scores, "__call__", scored)
    config = config_of(workdir, *METRICS)
    kept: list[int] = []
    write = loop.write_result
    monkeypatch.setattr(
        loop,
        "write_result",
        lambda job, path, *rest: (
            kept.append(job.step) if path.name == "best" else None,
            write(job, path, *rest),
        ),
    )
    assert loop.train(config, "diffusion", workdir, one_device(), quiet=True) == 0
    assert {step: row["scores/fid"] for step, row in rows(workdir).items()} == {2: 30.0, 4: 20.0, 6: 25.0}
    assert kept == [2, 4]
    best = json.loads((workdir / "diffusion" / "best.json").read_text())
    assert (best["step"], best["scores/fid"]) == (4, 20.0)
    bundles = {name: load_bundle(workdir / "diffusion" / name) for name in ("best", "bundle")}
    assert bundles["best"].records["unet"]["trained"]["steps"] == 4
    unets = [jax.tree.leaves(bundle.components["unet"]) for bundle in bundles.values()]
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*unets, strict=True))


@pytest.mark.parametrize(
    ("step", "value", "better"),
    [(5, 31.0, True), (5, 29.0, False), (5, 30.0, False), (4, 1.0, True), (3, 1.0, True)],
)
def test_what_is_better_than_what_was_kept(tmp_path: Path, step: int, value: float, better: bool) -> None:
    """A step that is done again after a stop may replace itself, as may one before it."""
    scores = object.__new__(Scores)
    scores.stage, scores._file = (
        dataclasses.replace(micro.nano_config().stages["diffusion"], validate_with=("clip",)),
        tmp_path / "best.json",
    )
    assert scores.is_best(4, {"scores/clip": 0.0})
    scores.keep(4, {"scores/clip": 30.0})
    assert scores.is_best(step, {"scores/clip": value}) is better
    # Of FID less is better, and what was kept by another score is no measure.
    scores.stage = dataclasses.replace(scores.stage, validate_with=("fid",))
    assert scores.is_best(5, {"scores/fid": 1e9})
    scores.keep(5, {"scores/fid": 9.0})
    assert scores.is_best(6, {"scores/fid": 8.0}) and not scores.is_best(6, {"scores/fid": 10.0})


def test_missing_weights_and_captions_end_it_before_it_begins(workdir: Path) -> None:
    for names, changes, said in (
        (("clip",), {"clip": "nowhere"}, "no bundle 'nowhere'"),
        (
            ("clip",),
            {"pictures": 65},
            "draws 65 held-out captions .judges.pictures., and the validation split",
        ),
    ):
        with pytest.raises(UserError, match=said):
            loop.train(config_of(workdir, *names, **changes), "diffusion", workdir, one_device())
