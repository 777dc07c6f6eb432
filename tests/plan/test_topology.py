"""The devices that libtpu makes of pods."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import found_topology, parse_topology
from mvader_jax.plan.topology import devices, places


def test_libtpu_is_asked_before_a_shape_is_believed() -> None:
    with pytest.raises(UserError, match="v5e:3x5"):
        devices(parse_topology("v5e:3x5"))


@pytest.mark.parametrize(
    ("name", "slices", "expected"),
    [
        ("v5e-1", 1, 1),
        ("v5e-4", 1, 4),
        ("v5e-8", 1, 8),
        ("v5litepod-16", 1, 16),
        ("v6e-1", 1, 1),
        ("v6e-8", 1, 8),
        ("v6e:4x4", 1, 16),
        ("v4-8", 1, 4),
        ("v4-16", 1, 8),
        ("v5p-8", 1, 4),
        ("v5p:2x2x2", 1, 8),
        ("tpu7x-2", 1, 2),
        ("tpu7x-8", 1, 8),
        ("2xv5e-16", 2, 32),
    ],
)
def test_a_device_a_chip_or_a_core_and_what_they_are_is_found_again(
    name: str, slices: int, expected: int
) -> None:
    topology = parse_topology(name)
    found = devices(topology)
    assert len(found) == expected == topology.devices
    assert found_topology(found) == topology and topology.slices == slices


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
