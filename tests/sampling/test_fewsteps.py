"""The bench of four steps at its smallest: all three ways draw, and diffusers' pipeline draws what ours does."""

from __future__ import annotations

import sys
from pathlib import Path

import micro
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import fewsteps


def test_the_bench_of_four_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewsteps, "THREADS", 1)
    bench = fewsteps.Bench(micro.bundle(micro.NANO), None, whole_steps=2)
    ways = bench.ways(2)
    assert bench.difference(ways, 2) <= 1
    spent = fewsteps.timed(ways, 1)
    assert {name: each.shape for name, each in spent.items()} == dict.fromkeys(
        ("few", "whole", "diffusers"), (1, 2)
    )
    median, *_ = fewsteps.ratio(spent, "few", 0).split()
    assert median == "1.00"
