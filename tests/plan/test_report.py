"""What is made of a compiled program's numbers: times, bounds, doubts and tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.compile import collective_seconds, memory_of, refused_memory
from mvader_jax.plan.expected import EXPOSED, fitted
from mvader_jax.plan.hlo.cost import Collective
from mvader_jax.plan.hlo.groups import Groups
from mvader_jax.plan.report import Figure, Plan, Subject, Work, from_dict, make_plan, refitted, text
from mvader_jax.plan.request import table

POD = parse_topology("v5e:16x16")
COMPILED: dict[str, Any] = {
    "memory": {"temporaries": 4 * 2**30, "peak": 10 * 2**30},
    "flops": 19.7e12,
    "kernel_flops": 1e12,
    "convolution_flops": 14e12,
    "bytes": 163.8e9,
    "launches": 5000,
    "saturated": 0,
    "unknown_loops": 0,
    "xla": {"optimal_seconds": 0.3},
    "collectives": [
        {"kind": "all-gather", "axes": "fsdp", "count": 9, "payload": 1, "wire": 5e9, "seconds": 0.05}
    ],
}


TRAINING = Work(2048, 256 * 15e12, 256 * 19e12, 60_000)


def plan_of(work: Work = TRAINING, **changes: Any) -> Plan:
    compiled = {**COMPILED, **changes}
    mesh = {"replica": 1, "data": 16, "fsdp": 16, "tensor": 1}
    subject = Subject(
        "open_v2: training step of diffusion",
        POD,
        mesh,
        {"microbatches": 1, "batch": 2048, "iterations": 60_000, "effort": -1.0},
    )
    parts = {"frozen weights": 805_306_368, "trained weights": 268_435_456}
    return make_plan(subject, parts, compiled, work)


def test_the_slowest_of_three_times_bounds_the_step() -> None:
    plan = plan_of()
    f = {name: figure.value for name, figure in plan.figures.items()}
    assert f["arithmetic_seconds"] == pytest.approx(0.1)
    assert f["memory_seconds"] == pytest.approx(0.2)
    assert f["interconnect_seconds"] == pytest.approx(0.05)
    assert plan.bound == "memory"
    assert f["step_seconds"] == pytest.approx(0.2)
    assert f["step_seconds_without_overlap"] == pytest.approx(0.35)


def test_what_follows_follows_from_what_is_expected() -> None:
    plan = plan_of()
    f = {name: figure.value for name, figure in plan.figures.items()}
    step, fit = f["expected_seconds"], fitted().fit
    assert step == pytest.approx(fit.slowness * (0.1 + EXPOSED * 0.2 + 0.05) + fit.launch * 5000)
    assert f["expected_least"] < step < f["expected_most"]
    assert f["images_per_second"] == pytest.approx(2048 / step)
    assert f["images_per_second_per_chip"] == pytest.approx(8 / step)
    assert f["utilisation"] == pytest.approx(15 / 197 / step)
    assert f["days"] == pytest.approx(step * 60_000 / 86400)
    assert f["chip_hours"] == pytest.approx(step * 60_000 / 3600 * 256)
    assert any("no step was measured on v5e" in note for note in plan.notes)
    assert not any("matrix products" in note for note in plan.notes)  # 4.7 of 19.7 TFLOP
    assert any("drawing" in note for note in plan_of(Work(256)).notes)


def test_a_kept_plan_is_given_what_the_present_fit_expects() -> None:
    plan = plan_of()
    old = {
        **plan.figures,
        "expected_seconds": Figure(9.0, "expected", "s"),
        "days": Figure(9.0, "expected", "d"),
    }
    again = refitted(
        dataclasses.replace(plan, figures=old, notes=("expected was something else", *plan.notes))
    )
    assert again.figures == plan.figures
    assert sorted(again.notes) == sorted(plan.notes)
    refused = plan_of(memory={"needed": 2**35, "limit": 2**34})
    assert refitted(refused) == refused


def test_every_figure_says_how_it_was_found() -> None:
    kinds = {name: figure.kind for name, figure in plan_of().figures.items()}
    assert kinds["frozen_weights"] == kinds["model_flops"] == "counted"
    assert kinds["flops"] == kinds["bytes"] == kinds["activations"] == kinds["peak"] == "compiled"
    assert kinds["step_seconds"] == kinds["memory_seconds"] == "estimated"
    assert kinds["expected_seconds"] == kinds["utilisation"] == kinds["days"] == "expected"


@pytest.mark.parametrize(("peak", "fits"), [(15.2, True), (15.21, False), (16.5, False)])
def test_five_percent_of_the_memory_stay_free(peak: float, fits: bool) -> None:
    assert plan_of(memory={"temporaries": 0, "peak": int(peak * 2**30)}).fits is fits


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"xla": {"optimal_seconds": -132.0}}, "cannot be: not used"),
        ({"xla": {"optimal_seconds": 0.01}}, "below the floors"),
        ({"xla": {}}, "no optimal_seconds"),
        ({"saturated": 3}, "3 of XLA's cycle estimates overflowed"),
        ({"unknown_loops": 2}, "trip count of 2 loops"),
        ({"flops": 60e12}, "times the counted ones"),
    ],
)
def test_what_is_not_to_be_believed_is_said(changes: dict[str, Any], note: str) -> None:
    assert any(note in line for line in plan_of(**changes).notes)
    assert not any(note in line for line in plan_of().notes)


def test_a_program_that_does_not_fit_has_no_times() -> None:
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 30.23G of 15.75G hbm. Exceeded hbm capacity by 14.48G."
    )
    memory = refused_memory(message)
    assert memory == {"needed": round(30.23 * 2**30), "limit": round(15.75 * 2**30)}
    assert refused_memory("INVALID_ARGUMENT: something else") is None
    plan = plan_of(memory=memory)
    assert not plan.fits and "step_seconds" not in plan.figures
    assert "30.23 GiB" in text(plan) and "does not fit" in text(plan)


def test_plans_travel_as_json() -> None:
    plan = plan_of()
    again = from_dict(json.loads(json.dumps(plan.to_dict())))
    assert text(again) == text(plan)
    assert again.to_dict() == plan.to_dict()
    lines = text(plan).splitlines()
    assert any("memory" in line and "bounds the step" in line for line in lines)
    assert any("all-gather" in line and "fsdp" in line for line in lines)


def test_the_table_has_a_row_a_plan() -> None:
    head, rule, good, bad = table(
        [plan_of().to_dict(), plan_of(memory={"needed": 2**35, "limit": 2**34}).to_dict()]
    ).splitlines()
    assert head.count("|") == rule.count("|") == good.count("|") == bad.count("|")
    assert "data=16,fsdp=16" in good and "100 / 200 / 50" in good and "10.0 of 16" in good
    assert "**no**" in bad and "32.0 of 16" in bad


class Stats:
    argument_size_in_bytes = 100
    output_size_in_bytes = 60
    alias_size_in_bytes = 50
    temp_size_in_bytes = 30
    generated_code_size_in_bytes = 5


def test_donated_memory_counts_once() -> None:
    assert memory_of(Stats)["peak"] == 100 + 60 - 50 + 30 + 5


def test_a_gather_along_a_ring_takes_both_ways_and_between_slices_the_slow_network() -> None:
    where = [(0, (x, 0, 0)) for x in range(16)]
    gather = Collective("all-gather", 16_000_000, Groups((tuple(range(16)),)), times=3)
    assert collective_seconds(gather, POD, where) == pytest.approx(3 * 15e6 / 100e9)
    two = parse_topology("v5e:16x16", 2)
    across = [(x // 8, (x % 8, 0, 0)) for x in range(16)]
    reduce = Collective("all-reduce", 16_000_000, Groups((tuple(range(16)),)))
    inside, between = 2 * 16e6 * 7 / 8 / 50e9, 2 * 16e6 / 8 / 2 / 3.1e9
    assert collective_seconds(reduce, two, across) == pytest.approx(inside + between)
    assert collective_seconds(Collective("all-reduce", 8, Groups(((0,),))), POD, where) == 0
