"""The mesh that is chosen where nobody names one: the compiled plans', for training the same as for a plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import micro
import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan import choice, counted
from mvader_jax.plan.choice import choose, choose_sampling, training_mesh
from mvader_jax.plan.request import Request, _training
from mvader_jax.plan.topology import devices
from mvader_jax.train.config import load_config

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "tpu" / "plans").glob("*_v2_*.json"))
ENCODED = ("latents", "features")


def never() -> float:
    raise AssertionError("one mesh fits: nothing is counted")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_compiled_plans_meshes_are_chosen(path: Path) -> None:
    """Their microbatches too, except where fewer fit by now."""
    plan = json.loads(path.read_text())
    config = load_config(ROOT / "configs" / f"{path.stem.split('_v2_')[0]}_v2.py")
    topology = parse_topology(plan["topology"]["name"], plan["topology"]["slices"])
    flops = plan["figures"]["counted_flops"]["value"] * topology.chips
    found = choose(topology, config, config.stage("diffusion"), ENCODED, flops=lambda: flops)
    assert dataclasses.asdict(found.mesh) == plan["mesh"]
    assert found.accumulate in (plan["settings"]["microbatches"], plan["settings"]["microbatches"] / 2)
    assert "fit" in found.why and topology.name in found.why


def open_v2(pod: str, **changes: Any) -> choice.Choice:
    config = load_config(ROOT / "configs" / "open_v2.py")
    stage = dataclasses.replace(config.stage("diffusion"), **changes.pop("stage", {}))
    return choose(parse_topology(pod), config, stage, ENCODED, **{"flops": lambda: 2048 * 3.4e12, **changes})


def test_the_reason_is_a_sentence() -> None:
    why = open_v2("v5e-256").why
    assert why.startswith("mesh data=4,fsdp=64: the fastest of ")
    assert why.endswith("that fit v5e:16x16 (3.6 of 16 GiB per chip, estimated)")
    why = open_v2("v4-8").why
    assert why.startswith("mesh fsdp=4 and 16 microbatches in place of 1: the fastest of ")
    assert why.endswith("that fit v4:2x2x1 (19.1 of 32 GiB per chip, estimated)")


def test_where_nothing_fits_it_says_so() -> None:
    found = open_v2("v5e-1", flops=never)
    assert found.mesh == MeshConfig() and "nothing is estimated to fit v5e:1x1" in found.why


def test_microbatches_that_are_asked_for_stay() -> None:
    assert open_v2("v4-8", stage={"accumulate": 32}).accumulate == 32
    exact = open_v2("v4-8", stage={"accumulate": 2}, more=False)
    assert exact.accumulate == 2 and "nothing is estimated to fit" in exact.why


def test_a_run_s_own_mesh_is_kept() -> None:
    kept = open_v2("v5e-256", keep=MeshConfig(data=16, fsdp=16), flops=never)
    assert kept.mesh == MeshConfig(data=16, fsdp=16) and "the run's own so far" in kept.why
    other = open_v2("v5e-256", keep=MeshConfig(data=256, fsdp=3))
    assert other.mesh == MeshConfig(data=4, fsdp=64)


def test_processes_that_cannot_share_a_mesh_get_another() -> None:
    first, second = (open_v2("v5e-64", usable=lambda mesh, n=n: mesh.fsdp <= n) for n in (64, 32))
    assert (first.mesh.fsdp, second.mesh.fsdp) == (64, 32)


def test_no_mesh_for_a_batch_that_divides_over_none() -> None:
    with pytest.raises(UserError, match="no mesh of powers of two divides v5e:4x4, the batch of 7"):
        open_v2("v5e-16", stage={"batch_size": 7})


@pytest.mark.parametrize("name", ["open_v1", "tiny"])
def test_every_stage_of_a_config_finds_a_mesh(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.py")
    for stage in config.stages.values():
        found = choose(parse_topology("v5p-16"), config, stage, flops=lambda: 1e15)
        assert found.mesh.resolve(8) == found.mesh


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Four chips that are not there, in place of the machine's devices."""
    found = devices(parse_topology("v5e-4"))
    monkeypatch.setattr(jax, "devices", lambda *backend: found)
    monkeypatch.setattr(choice, "kept_flops", lambda *stage, remat: 1e12)
    return found


def test_training_chooses_as_a_plan_does(pod: list[Any], tmp_path: Path) -> None:
    config = micro.train_config(batch_size=16)
    stage = config.stage("vae")
    mesh, same, why = training_mesh(config, "vae", tmp_path)
    planned = choose(parse_topology("v5e-4"), config, stage, flops=lambda: 1e12)
    assert dict(mesh.shape) == dataclasses.asdict(planned.mesh) and why == planned.why
    assert same == config and list(mesh.devices.flat) == list(make_mesh(planned.mesh, pod).devices.flat)


def test_training_that_goes_on_keeps_its_mesh_on_as_many_devices(
    pod: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro.train_config(batch_size=16)
    chosen = dict(training_mesh(config, "vae", tmp_path)[0].shape)
    before = {"replica": 1, "data": 1, "fsdp": 2, "tensor": 2}
    assert chosen != before
    monkeypatch.setattr(choice, "newest_metadata", lambda directory: {"mesh": before})
    mesh, _, why = training_mesh(config, "vae", tmp_path)
    assert dict(mesh.shape) == before and "the run's own so far" in why
    # On another number of devices it is chosen anew.
    monkeypatch.setattr(choice, "newest_metadata", lambda directory: {"mesh": {**before, "data": 2}})
    assert dict(training_mesh(config, "vae", tmp_path)[0].shape) == chosen


def test_other_devices_than_tpus_lie_along_data(tmp_path: Path) -> None:
    config = micro.train_config(batch_size=16)
    mesh, same, why = training_mesh(config, "vae", tmp_path)
    assert mesh.shape["data"] == mesh.size == len(jax.devices()) and same == config and why == ""


def test_sampling_divides_weights_as_little_as_it_can() -> None:
    model = ModelConfig.open_m_vader()
    found = {
        (pod, dtype): choose_sampling(parse_topology(pod), model, 16, dtype)[0].fsdp
        for pod in ("v5e-8", "v4-8", "2xv5e-8")
        for dtype in ("bfloat16", "float32")
    }
    assert found == {
        ("v5e-8", "bfloat16"): 2,
        ("v5e-8", "float32"): 4,
        ("v4-8", "bfloat16"): 1,
        ("v4-8", "float32"): 2,
        ("2xv5e-8", "bfloat16"): 1,
        ("2xv5e-8", "float32"): 4,
    }
    _, why = choose_sampling(parse_topology("v5e-1"), model, 1, "bfloat16")
    assert why == "mesh data=1: the fewest ways that fit v5e:1x1 (14.2 of 16 GiB per chip, estimated)"
    _, why = choose_sampling(parse_topology("v5e-1"), model, 1, "float32")
    assert why.startswith("mesh data=1: nothing is estimated to fit v5e:1x1, this comes nearest (28.4")
    with pytest.raises(UserError, match="3 images do not divide over the 8 devices of v5e:2x4"):
        choose_sampling(parse_topology("v5e-8"), model, 3, "bfloat16")


def test_the_plan_of_open_v2_s_docstring_is_on_a_mesh_that_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    """320 channels do not divide over 256 devices: fsdp=-1, the mesh of before, was refused."""
    monkeypatch.setattr(counted, "kept_flops", lambda *stage, **options: 2048 * 3.9e12)
    config = load_config(ROOT / "configs" / "open_v2.py")
    request = Request("configs/open_v2.py", "v5e-256")
    planned = _training(request, config, parse_topology("v5e-256"), lambda message: None)
    assert dict(planned.program.mesh.shape) == {"replica": 1, "data": 4, "fsdp": 64, "tensor": 1}
    assert planned.notes == [
        "mesh data=4,fsdp=64: the fastest of 5 that fit v5e:16x16 (3.6 of 16 GiB per chip, estimated)"
    ]
