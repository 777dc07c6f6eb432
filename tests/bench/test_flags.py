"""How a program's collectives run is read off its text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

#: Four gathers: one waited for, one started, one in an asynchronous computation, one fused with a product in two steps.
PROGRAM = """HloModule step

%fused_start (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[32,128]{1,0} all-gather(%p), channel_id=3, dimensions={0}
}

%fused_done (q: bf16[8,128]) -> bf16[32,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  ROOT %all-gather.4 = bf16[32,128]{1,0} all-gather(%q), channel_id=3, dimensions={0}
}

%apart (r: bf16[8,128]) -> bf16[32,128] {
  %r = bf16[8,128]{1,0} parameter(0)
  ROOT %all-gather.5 = bf16[32,128]{1,0} all-gather(%r), channel_id=4, dimensions={0}
}

ENTRY %main (x: bf16[8,128]) -> bf16[32,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %all-gather.1 = bf16[32,128]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %all-gather-start = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%x), channel_id=2, dimensions={0}
  %all-gather-done = bf16[32,128]{1,0} all-gather-done(%all-gather-start)
  %async-start = ((bf16[8,128]{1,0}), bf16[32,128]{1,0}) async-start(%x), calls=%apart
  %async-done = bf16[32,128]{1,0} async-done(%async-start)
  %fusion.1 = bf16[32,128]{1,0} fusion(%x), kind=kCustom, calls=%fused_start
  ROOT %fusion.2 = bf16[32,128]{1,0} fusion(%x), kind=kCustom, calls=%fused_done
}
"""


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_flags", Path(__file__).with_name("flags.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ways_of_collectives(bench: Any) -> None:
    assert bench.ways(PROGRAM) == {"waited": 1, "started": 2, "fused": 1}


def test_every_flag_that_is_set_has_a_row_and_stands_beside_what_others_set(bench: Any) -> None:
    ours = {"xla_tpu_this": "false", "xla_tpu_that": "7"}
    v5e, v6e = bench.rows("v5e", ours), bench.rows("v6e", ours)
    assert v5e[bench.NONE] == {} and v5e[bench.OURS] == ours
    assert v5e["xla_tpu_that=7"] == {"xla_tpu_that": "7"}
    assert v5e["no collective matmul"] == {**ours, "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
    assert set(v6e) >= {*v5e, *bench.SPARSE} and not set(v5e) & set(bench.SPARSE)
