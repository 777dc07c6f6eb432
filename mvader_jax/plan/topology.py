"""Pods by name: their chips' numbers, their shape, and the devices that a program is compiled for.

Names are `GENERATION:SIDExSIDE[xSIDE]`, as in v5e:16x16. The numbers stand in `tpu/chips.toml`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.settings import nearest

#: What libtpu reads to compile without a TPU: no query of a metadata server, one imaginary host.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of `tpu/chips.toml`; its comments say what each number is."""

    name: str
    peak_tflops: float
    hbm_gib: float
    hbm_gbps: float
    ici_links: int
    ici_gbps: float
    ici_wraps: int
    torus: int
    dcn_gbps: float
    dcn_source: str
    chip_config: str
    cores: int
    hosts: int
    source: str

    @property
    def peak(self) -> float:
        """FLOPs per second."""
        return self.peak_tflops * 1e12

    @property
    def hbm_bytes(self) -> int:
        return round(self.hbm_gib * 2**30)


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` pods of one shape, joined by the data-centre network."""

    generation: str
    shape: tuple[int, ...]
    slices: int
    chip: Chip

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def wraps(self, dim: int) -> bool:
        """Whether the pod's links close to a ring along a side."""
        side, whole = self.shape[dim], self.chip.ici_wraps
        return side >= whole and (side % whole == 0 if self.chip.torus == 3 else side == whole)

    def bandwidth(self, places: Iterable[Sequence[int]]) -> float:
        """Bytes per second that a chip sends in a collective among chips at these coordinates (estimated).

        Along every side on which they differ a chip has one link, two where the side closes to a ring.
        """
        links = 0
        for dim, values in enumerate(zip(*places, strict=True)):
            spread = len(set(values))
            if spread > 1:
                links += 2 if spread == self.shape[dim] and self.wraps(dim) else 1
        return max(links, 1) * self.chip.ici_gbps * 1e9


def chips_file() -> Path:
    """`tpu/chips.toml` of the checkout. Raises UserError where the package was installed without it."""
    path = Path(__file__).parents[2] / "tpu" / "chips.toml"
    if not path.is_file():
        raise UserError("there is no tpu/chips.toml; plans are made in a checkout of the project")
    return path


@functools.cache
def chips() -> dict[str, Chip]:
    """{generation: its chip}."""
    return {key: Chip(**row) for key, row in tomllib.loads(chips_file().read_text(encoding="utf-8")).items()}


def parse_topology(name: str, slices: int = 1) -> Topology:
    """'v5e:16x16' -> Topology. Raises UserError for another spelling or an unknown generation."""
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+){1,2})", name)
    if not match:
        raise UserError(f"{name!r} is no topology; write GENERATION:SIDExSIDE, as in v5e:16x16 or v5p:4x4x8")
    if match[1] not in chips():
        raise UserError(f"unknown generation {match[1]!r} in {name!r}; {nearest(match[1], chips())}")
    chip = chips()[match[1]]
    shape = tuple(int(side) for side in match[2].split("x"))
    if len(shape) != chip.torus or min(shape) < 1:
        raise UserError(f"{name!r}: slices of {chip.name} have {chip.torus} sides, each at least 1")
    if slices < 1:
        raise UserError(f"slices is {slices}; at least 1 is needed")
    return Topology(match[1], shape, slices, chip)


def prepare_environment() -> None:
    """Lets libtpu load on a machine without TPUs. To be called before it is loaded."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def devices(topology: Topology) -> list[Any]:
    """The devices a program is compiled for: one per chip, or one for each of its `cores`.

    Raises UserError where libtpu is not installed or does not know the shape.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plans are compiled by libtpu, which is missing: pip install 'mvader-jax[tpu]'")
    prepare_environment()
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.chip_config:
        options["chip_config_name"] = topology.chip.chip_config
    try:
        found = list(topologies.get_topology_desc(topology.name, platform="tpu", **options).devices)
    except Exception as error:  # jaxlib raises its own XlaRuntimeError, ValueError or RuntimeError
        reason = str(error).splitlines()[0]
        if "libtpu" in reason and "not" in reason:
            raise UserError(f"plans are compiled by libtpu, which does not load: {reason}") from None
        raise UserError(f"libtpu does not know the topology {topology.name}: {reason}") from None
    return found


def places(found: Sequence[Any]) -> list[tuple[int, tuple[int, ...]]]:
    """(slice, coordinates) of each device."""
    return [(int(getattr(d, "slice_index", 0) or 0), tuple(d.coords)) for d in found]
