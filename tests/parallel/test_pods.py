"""Pods by name: Google's, ours and by shape, and what their chips can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.pods import chips, found_topology, offered, parse_topology

ROOT = Path(__file__).parents[2]


def test_every_chip_s_numbers_have_a_source() -> None:
    assert set(chips()) == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
    for chip in chips().values():
        assert chip.source.startswith("https://cloud.google.com/tpu/docs/")
        assert chip.dcn_source
    assert chips()["v5e"].peak == 197e12 and chips()["v5e"].hbm_bytes == 16 * 2**30


@pytest.mark.parametrize(
    ("name", "shape", "chips", "google"),
    [
        ("v5e-1", "v5e:1x1", 1, "v5litepod-1"),
        ("v5e-4", "v5e:2x2", 4, "v5litepod-4"),
        ("v5e-8", "v5e:2x4", 8, "v5litepod-8"),
        ("v5litepod-16", "v5e:4x4", 16, "v5litepod-16"),
        ("v5e:16x16", "v5e:16x16", 256, "v5litepod-256"),
        ("v6e-8", "v6e:2x4", 8, "v6e-8"),
        ("v4-8", "v4:2x2x1", 4, "v4-8"),
        ("v4-16", "v4:2x2x2", 8, "v4-16"),
        ("v4-32", "v4:2x2x4", 16, "v4-32"),
        ("v4-512", "v4:4x8x8", 256, "v4-512"),
        ("v4-1536", "v4:8x8x12", 768, "v4-1536"),
        ("v5p-8", "v5p:2x2x1", 4, "v5p-8"),
        ("v5p-128", "v5p:4x4x4", 64, "v5p-128"),
        ("v5p-12288", "v5p:16x16x24", 6144, "v5p-12288"),
        ("tpu7x-8", "tpu7x:2x2x1", 4, "tpu7x-8"),
        ("2xv5e-256", "v5e:16x16", 512, "v5litepod-256"),
        ("v5p-4x4x16", "v5p:4x4x16", 256, None),
    ],
)
def test_a_pod_by_any_of_its_names(name: str, shape: str, chips: int, google: str | None) -> None:
    """Chips per name and the shapes of slices as Google's pages and its xpk have them."""
    topology = parse_topology(name)
    assert (topology.name, topology.chips, topology.google) == (shape, chips, google)
    assert topology.shape == parse_topology(topology.name).shape


def test_every_slice_that_is_offered_is_one() -> None:
    assert offered("v5e").startswith(
        "v5e-1, v5e-4, v5e-8, v5e-16, v5e-32, v5e-64, v5e-128, v5e-256, or a shape"
    )
    assert offered("v5p").startswith(
        "v5p-8, v5p-16, v5p-32, v5p-64, multiples of v5p-128 up to v5p-12288, or"
    )
    for generation, chip in chips().items():
        for name in offered(generation).split(", multiples")[0].split(", or")[0].split(", "):
            assert parse_topology(name).google == name.replace(generation, chip.google)


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("big", 1, r"'big' is no pod; accepted: Google's name \(v5litepod-16, v4-16\), ours"),
        ("v5e:", 1, "is no pod"),
        ("v5f-8", 1, "unknown generation 'v5f' in 'v5f-8'; accepted: tpu7x, v4, v5e, v5litepod, v5p, v6e"),
        ("v5e-12", 1, "there is no slice v5e-12; accepted: v5e-1, v5e-4, "),
        ("v4-12", 1, "there is no slice v4-12; accepted: v4-8, v4-16, v4-32, v4-64, multiples of v4-128"),
        ("v4-9", 1, "there is no slice v4-9"),
        ("v5e-512", 1, "there is no slice v5e-512"),
        ("v5p-12416", 1, "there is no slice v5p-12416"),
        ("v5e:2x2x2", 1, "have 2 sides"),
        ("v4:4x4", 1, "have 3 sides"),
        ("v5e:0x4", 1, "at least 1"),
        ("0xv5e-4", 1, "at least 1"),
        ("2xv5e-4", 3, "'2xv5e-4' is 2 slices, not 3"),
    ],
)
def test_a_misspelt_pod_is_one_sentence(name: str, slices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_topology(name, slices)


def test_devices_that_are_no_pod() -> None:
    assert found_topology(jax.devices()) is None


def test_the_launchers_may_read_it_without_any_package() -> None:
    """-S: nothing is installed."""
    code = "import mvader_jax.parallel.pods as pods; print(pods.parse_topology('v4-16').name)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "v4:2x2x2\n", done.stderr


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
