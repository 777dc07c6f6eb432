"""Runs that an earlier version began: their settings, stored flat, are read under today's keys; they go on.

`recorded_config.json` is what that version wrote of `micro.nano_config()` with a stage "mixed" beside it.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.settings import from_dict, modern, to_dict
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.train.config import TrainConfig
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Diffusion
from mvader_jax.train.origin import changes

RECORDED = json.loads(Path(__file__).with_name("recorded_config.json").read_text(encoding="utf-8"))


def today() -> TrainConfig:
    config = micro.nano_config()
    objective = Diffusion(
        dropout=0.3,
        null="zeros",
        posterior="mean",
        timestep_bias=2.0,
        caption_length=24,
        p_interleaved=0.5,
        interleaved_images=3,
    )
    mixed = dataclasses.replace(config.stages["diffusion"], objective=objective)
    return dataclasses.replace(config, stages={**config.stages, "mixed": mixed})


@pytest.mark.parametrize("stage", list(RECORDED["stages"]))
def test_stored_settings_are_todays(stage: str) -> None:
    config = today()
    data = modern(TrainConfig, RECORDED)
    assert from_dict(TrainConfig, data).stages[stage] == config.stages[stage]
    new = {"config": to_dict(config), "stage": stage, "start": {}}
    assert changes({"config": RECORDED, "stage": stage}, new) == []
    other = {**new, "config": to_dict(dataclasses.replace(config, stages={stage: longer(config, stage)}))}
    assert changes({"config": RECORDED, "stage": stage}, other) == ["stage.steps changed from 6 to 7"]


def longer(config: TrainConfig, stage: str) -> Any:
    return dataclasses.replace(config.stages[stage], steps=7)


def test_a_run_with_such_settings_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bundle(tmp_path / "init", micro.bundle(micro.NANO, "decoder"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = micro.language_config(str(tmp_path / "init"), steps=1)
    assert train(config, "language", tmp_path, mesh, quiet=True) == 0
    file = tmp_path / "language" / "checkpoints" / "1" / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    old = {**RECORDED["stages"]["language"], "init": [str(tmp_path / "init")], "steps": 1}
    file.write_text(json.dumps({**metadata, "config": {**RECORDED, "stages": {"language": old}}}))
    config = micro.language_config(str(tmp_path / "init"), steps=2)
    assert train(config, "language", tmp_path, mesh) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "going on from step 1 of 2" in said
    assert said.count("since that step was saved") == 1
    assert "since that step was saved stage.steps changed from 1 to 2" in said


def test_a_checkpoint_of_an_earlier_version_goes_on_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`recorded_run.tar.gz`: the bundle and the checkpoint of step 2 that the version before the rooms wrote, and sums
    of what it came to at step 6. On the machine they were made on the parameters are the same to the bit."""
    with tarfile.open(Path(__file__).with_name("recorded_run.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = micro.language_config("init", steps=6, keep=9)
    assert train(config, "language", tmp_path, mesh) == 0
    assert "going on from step 2 of 6" in " ".join(capsys.readouterr().err.split())
    found = flatten_dict(load_bundle(tmp_path / "language" / "bundle").components, sep="/")
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        values = np.asarray(leaf, np.float64)
        sums = [np.abs(values).sum(), (values.ravel() * np.cos(np.arange(values.size))).sum()]
        np.testing.assert_allclose(sums, expected[name], rtol=1e-5, atol=1e-4, err_msg=name)
    # What a user laid into the bundle is not lost, and that is said before anything is trained.
    (tmp_path / "language" / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not replaced: beside a bundle it holds notes\.txt"):
        train(micro.language_config("init", steps=10**6), "language", tmp_path, mesh)
    assert (tmp_path / "language" / "bundle" / "notes.txt").read_text() == "mine"
