"""Ranking meshes: which are tried, and that the model prefers what it should."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.paper import recipes as paper
from mvader_jax.parallel.mesh import MeshConfig
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan import search

MODEL = ModelConfig.open_m_vader()
STAGE = paper.diffusion("v2", init=(), data=paper.laion())
#: About 3.4 TFLOP per sample.
WORK = search.Work(
    MODEL,
    STAGE,
    components=frozenset(STAGE.objective.components(MODEL)),
    trained=frozenset({"unet"}),
    frozen_bytes=12.9e9,
    trained_size=0.943e9,
    flops=2048 * 3.4e12,
    positions=90.4,
)


def ranked(pod: str, **changes: float) -> list[search.Candidate]:
    work = dataclasses.replace(WORK, **changes)  # type: ignore[arg-type]
    return search.rank(parse_topology(pod), work, lambda mesh: True)


def test_every_split_makes_up_the_pod_and_the_batch() -> None:
    topology = parse_topology("v5e:4x4", 2)
    seen = set()
    for mesh, accumulate in search.splits(topology, STAGE):
        assert mesh.replica == 2
        assert math.prod(dataclasses.astuple(mesh)) == 32
        assert STAGE.batch_size % (mesh.replica * mesh.data * mesh.fsdp * accumulate) == 0
        seen.add((mesh, accumulate))
    assert {mesh.tensor for mesh, _ in seen} == {1, 2, 4, 8}
    assert {mesh.fsdp for mesh, _ in seen} == {1, 2, 4, 8, 16}
    assert len(seen) == len(list(search.splits(topology, STAGE)))


def test_contrastive_batches_are_never_cut() -> None:
    stage = paper.contrastive(init=())
    assert {a for _, a in search.splits(parse_topology("v5e:4x4"), stage)} == {1}


def test_microbatches_keep_the_groups_of_rows_whole() -> None:
    mesh = MeshConfig(data=4, fsdp=4)
    assert search.microbatches(STAGE, mesh) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert search.microbatches(STAGE, mesh, least=4) == [4, 8, 16, 32, 64, 128]
    assert search.microbatches(dataclasses.replace(STAGE, row_groups=64), mesh) == [1, 2, 4]
    assert search.microbatches(dataclasses.replace(STAGE, batch_size=100), mesh) == []


def test_what_is_ranked_fits() -> None:
    pod = parse_topology("v5e:16x16")
    found = ranked("v5e:16x16")
    assert all(c.memory <= search.ROOM * pod.chip.hbm_bytes for c in found)
    # 13 GB of frozen weights never lie whole on a chip of 16 beside the optimizer.
    assert all(c.mesh.fsdp * c.mesh.tensor > 1 for c in found)
    # To two digits: the model knows no more.
    assert all(a.seconds <= 1.1 * b.seconds for a, b in itertools.pairwise(found))


def test_where_memory_is_short_the_batch_is_cut() -> None:
    """2048 samples on four chips: 512 each, of which no chip holds the activations at once."""
    small, large = ranked("v4:2x2x1")[0], ranked("v5p:4x4x4")[0]
    assert small.accumulate > large.accumulate == 1
    assert small.memory <= search.ROOM * 32 * 2**30


def test_where_nothing_fits_the_nearest_comes_first() -> None:
    found = ranked("v5e:2x2", frozen_bytes=400e9)
    assert found[0].memory == min(c.memory for c in found)
    assert found[0].memory > parse_topology("v5e:2x2").chip.hbm_bytes


def test_more_microbatches_send_more_and_hold_less() -> None:
    topology = parse_topology("v5e:16x16")
    mesh = MeshConfig(data=16, fsdp=16)
    one, four = (search.estimate(topology, WORK, mesh, n) for n in (1, 4))
    assert four.interconnect > 3.9 * one.interconnect and four.memory < one.memory
    assert four.arithmetic == one.arithmetic


def test_meshes_that_do_not_divide_a_parameter_are_left_out() -> None:
    topology = parse_topology("v5e:16x16")
    found = search.rank(topology, WORK, lambda mesh: mesh.fsdp <= 64)
    assert max(c.mesh.fsdp for c in found) == 64
    with pytest.raises(
        UserError, match="no mesh of powers of two divides v5e:16x16, the batch of 2048 and the param"
    ):
        search.rank(topology, WORK, lambda mesh: False)
