"""An objective of one's own: one file (`toy.py`) and one registration line; settings, training and plans know it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import pytest

from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.program import train_program
from mvader_jax.settings import from_dict, override, to_dict
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.train.assemble import batch_shape
from mvader_jax.train.config import Group, TrainConfig
from mvader_jax.train.loop import train
from mvader_jax.train.objectives import Objective
from mvader_jax.train.run import stage_loader


def toy() -> Any:
    """The file's module; this folder is no package."""
    if "toy_objective" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy_objective", Path(__file__).with_name("toy.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["toy_objective"] = module
        spec.loader.exec_module(module)
    return sys.modules["toy_objective"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Objective.kinds, "toy", toy().Toy)  # type: ignore[arg-type]


def config() -> TrainConfig:
    base = micro.nano_config(steps=2, batch_size=4, log_every=1)
    stage = dataclasses.replace(
        base.stages["vae"], objective=toy().Toy(), groups={"encoder": Group("vae/encoder/.*", 1e-3)}
    )
    return dataclasses.replace(base, stages={"toy": stage})


def test_its_settings_travel_and_are_overridden() -> None:
    changed = override(config(), ["stages.toy.objective.power=3"])
    assert changed.stages["toy"].objective == toy().Toy(power=3.0)
    assert from_dict(TrainConfig, to_dict(changed)) == changed
    again = override(changed, ["stages.toy.objective=vae", "stages.toy.objective=toy"])
    assert again == config()
    with pytest.raises(UserError, match=r"unknown key 'dropout' .*\(toy\); known: power"):
        override(config(), ["stages.toy.objective.dropout=0.5"])


def test_its_batch_and_its_abstract_batch_agree() -> None:
    bundle, stage = micro.bundle(micro.NANO, "vae"), config().stages["toy"]
    made = next(stage_loader(bundle, stage))
    abstract = stage.objective.abstract_batch(*batch_shape(bundle.model, stage), None, EncodedShapes())
    assert jax.tree.map(lambda x: (tuple(x.shape), jnp.dtype(x.dtype)), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )


def test_it_trains(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert train(config(), "toy", tmp_path, mesh, quiet=True) == 0
    records = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "error" in r] == [1, 2]
    assert any("validation/error" in r for r in records)
    assert set(load_bundle(tmp_path / "toy" / "bundle").components) == {"vae"}


def test_it_is_planned() -> None:
    loaded = config()
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    program = train_program(loaded, loaded.stages["toy"], mesh)
    assert "stablehlo" in program.lower("cpu").as_text()
    assert set(program.arguments[0].trainable["vae"]) == {"encoder"}


def test_what_it_cannot_do_it_refuses() -> None:
    stage = config().stages["toy"]
    for changes, message in (
        ({"precomputed": ("x",)}, "the toy objective reads no precomputed latents or features"),
    ):
        with pytest.raises(UserError, match=message):
            stage.objective.check(dataclasses.replace(stage.data, **changes))
    with pytest.raises(UserError, match="the toy objective shows no pictures to an image encoder"):
        stage.objective.encoder_input({})
    with pytest.raises(UserError, match="whiten is for networks that read a condition; toy trains none"):
        stage.objective.condition_width(micro.NANO)
