"""Pods by name, their chips' numbers, and the devices that libtpu makes of them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.topology import chips, devices, parse_topology, places


def test_every_chip_s_numbers_have_a_source() -> None:
    assert set(chips()) == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
    for chip in chips().values():
        assert chip.source.startswith("https://cloud.google.com/tpu/docs/")
        assert chip.dcn_source
    assert chips()["v5e"].peak == 197e12 and chips()["v5e"].hbm_bytes == 16 * 2**30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-256", "write GENERATION:SIDExSIDE"),
        ("v5f:2x2", "unknown generation 'v5f' in 'v5f:2x2'; did you mean 'v5"),
        ("v5e:2x2x2", "have 2 sides"),
        ("v4:4x4", "have 3 sides"),
        ("v5e:0x4", "at least 1"),
    ],
)
def test_a_misspelt_pod_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_topology(name)


def test_libtpu_is_asked_before_a_shape_is_believed() -> None:
    with pytest.raises(UserError, match="v5e:3x5"):
        devices(parse_topology("v5e:3x5"))


@pytest.mark.parametrize(
    ("name", "slices", "expected"),
    [("v5e:4x4", 1, 16), ("v4:2x2x1", 1, 4), ("v5p:2x2x2", 1, 8), ("v6e:4x4", 1, 16), ("tpu7x:2x2x1", 1, 8)],
)
def test_a_device_a_chip_or_a_core(name: str, slices: int, expected: int) -> None:
    topology = parse_topology(name, slices)
    assert len(devices(topology)) == expected == topology.chips * topology.chip.cores


def test_a_missing_libtpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, which is missing: pip install 'mvader-jax\[tpu\]'"):
        devices(parse_topology("v5e:4x4"))


def test_slices_are_told_apart() -> None:
    topology = parse_topology("v5e:4x4", 2)
    found = places(devices(topology))
    assert len(found) == topology.chips == 32
    assert {number for number, _ in found} == {0, 1}


@pytest.mark.parametrize(
    "shape", [MeshConfig(replica=2, data=1, fsdp=8, tensor=2), MeshConfig(replica=4, fsdp=8)]
)
def test_slices_lie_along_replica(shape: MeshConfig) -> None:
    found = devices(parse_topology("v5e:4x4", 2))
    grid = make_mesh(shape, found).devices
    for half, number in zip(np.split(grid, 2), (0, 1), strict=True):
        assert {device.slice_index for device in half.ravel()} == {number}
    with pytest.raises(UserError, match="the devices are 2 slices; name replica=2"):
        make_mesh(MeshConfig(data=2, fsdp=16), found)


def test_only_whole_sides_close_to_rings() -> None:
    assert [parse_topology("v5e:16x16").wraps(d) for d in (0, 1)] == [True, True]
    assert [parse_topology("v5e:8x16").wraps(d) for d in (0, 1)] == [False, True]
    assert [parse_topology("v4:2x4x8").wraps(d) for d in (0, 1, 2)] == [False, True, True]


def test_a_collective_s_links_are_those_along_which_it_spreads() -> None:
    topology = parse_topology("v5e:16x16")
    link = 50e9
    row = [(x, 0, 0) for x in range(16)]
    assert topology.bandwidth(row) == 2 * link  # a ring: both ways
    assert topology.bandwidth(row[:8]) == link  # part of one: its ends have one neighbour
    assert topology.bandwidth([(x, y, 0) for x in range(16) for y in range(16)]) == 4 * link
    assert topology.bandwidth([(0, 0, 0)]) == link
