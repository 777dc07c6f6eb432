"""TPU pods by name: what a chip of each generation can do, and the shapes that its slices come in.

A pod is named as Google does (v5litepod-16; v4-16, where the number counts TensorCores, two per chip), in the same
way under our name of the generation (v5e-16), or by its shape (v5e:4x4). `2xv5e-256` is two such slices.

Neither JAX nor NumPy is imported: the launchers of `tpu/` read this file on machines that have none.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError

#: Chips of a cube; slices of more than 32 chips of a 3D torus are made of these.
_CUBE = 4**3


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of `chips.toml`; its comments say what each number is."""

    name: str
    kinds: tuple[str, ...]
    peak_tflops: float
    clock_ghz: float
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
    google: str
    counts: int
    shapes: tuple[str, ...]
    most: int
    runtime: str
    source: str

    @property
    def peak(self) -> float:
        """FLOPs per second."""
        return self.peak_tflops * 1e12

    @property
    def hbm_bytes(self) -> int:
        return round(self.hbm_gib * 2**30)

    def slice_shape(self, count: int) -> tuple[int, ...] | None:
        """The shape of the slice whose name has this number: the squarest. None where there is none."""
        chips, rest = divmod(count, self.counts)
        if rest:
            return None
        for text in self.shapes:
            shape = tuple(map(int, text.split("x")))
            if math.prod(shape) == chips:
                return shape
        if self.torus != 3 or chips % _CUBE or not 0 < chips <= self.most:
            return None
        a, b, c = min(_boxes(chips // _CUBE), key=sum)
        return 4 * a, 4 * b, 4 * c


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
    def devices(self) -> int:
        """As JAX shows them."""
        return self.chips * self.chip.cores

    @property
    def name(self) -> str:
        """Of one slice, by its shape."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def google(self) -> str | None:
        """Google's name of one slice; None for a shape that has none of its own."""
        count = math.prod(self.shape) * self.chip.counts
        return f"{self.chip.google}-{count}" if self.chip.slice_shape(count) == self.shape else None

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


@functools.cache
def chips() -> dict[str, Chip]:
    """{generation: its chip}."""
    text = Path(__file__).with_name("chips.toml").read_text(encoding="utf-8")
    found = {}
    for name, row in tomllib.loads(text).items():
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        found[name] = Chip(**values)
    return found


def generation_of(device_kind: str) -> str | None:
    """The generation of a device by JAX's name of its kind; None for what is no TPU listed here."""
    kinds = {kind: name for name, chip in chips().items() for kind in chip.kinds}
    matching = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(matching, key=len)] if matching else None


def parse_topology(name: str, slices: int = 1) -> Topology:
    """'v5e-256', 'v5litepod-256', '2xv5e-256' or 'v5e:16x16' -> Topology.

    A shape may be any of the right number of sides: whether there is such a slice, libtpu says. Raises UserError
    for another spelling, an unknown generation or number, and where the name and `slices` disagree.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*)[-:](\d+(?:x\d+)*)", name)
    if not match:
        raise UserError(f"{name!r} is no pod; {ACCEPTED}")
    known = {spelling: key for key, chip in chips().items() for spelling in (chip.google, key)}
    if match[2] not in known:
        raise UserError(f"unknown generation {match[2]!r} in {name!r}; accepted: {', '.join(sorted(known))}")
    generation = known[match[2]]
    chip = chips()[generation]
    number = int(match[1] or slices)
    if number < 1 or slices < 1:
        raise UserError(f"{name!r}: slices is {min(number, slices)}; at least 1 is needed")
    if slices not in (1, number):
        raise UserError(f"{name!r} is {number} slices, not {slices}; say it once")
    if "x" in match[3]:
        shape = tuple(int(side) for side in match[3].split("x"))
        if len(shape) != chip.torus or min(shape) < 1:
            raise UserError(f"{name!r}: slices of {chip.name} have {chip.torus} sides, each at least 1")
        return Topology(generation, shape, number, chip)
    found = chip.slice_shape(int(match[3]))
    if found is None:
        raise UserError(f"there is no slice {match[2]}-{match[3]}; accepted: {offered(generation)}")
    return Topology(generation, found, number, chip)


def offered(generation: str) -> str:
    """In words, the slices of a generation by name."""
    chip = chips()[generation]
    counts = [math.prod(map(int, text.split("x"))) * chip.counts for text in chip.shapes]
    words = ", ".join(f"{generation}-{count}" for count in counts)
    if chip.torus == 3:
        cube = _CUBE * chip.counts
        words += f", multiples of {generation}-{cube} up to {generation}-{chip.most * chip.counts}"
    example = "4x4x8" if chip.torus == 3 else "4x8"
    return f"{words}, or a shape as {generation}:{example}"


def found_topology(devices: Sequence[Any]) -> Topology | None:
    """The pod that these devices of JAX are, all that a job has; None for other devices than TPUs."""
    generation = generation_of(devices[0].device_kind)
    if devices[0].platform != "tpu" or generation is None:
        return None
    slices = {int(getattr(device, "slice_index", 0) or 0) for device in devices}
    sides = zip(*(device.coords for device in devices), strict=True)
    spans = [max(side) - min(side) + 1 for side in sides][: chips()[generation].torus]
    return Topology(generation, tuple(spans), len(slices), chips()[generation])


def _boxes(volume: int) -> Iterator[tuple[int, int, int]]:
    """Boxes of whole sides, shortest first."""
    for a in range(1, volume + 1):
        for b in range(a, volume // a + 1):
            if volume % (a * b) == 0 and volume // (a * b) >= b:
                yield a, b, volume // (a * b)


#: What a pod's name may be, in words.
ACCEPTED = "accepted: Google's name (v5litepod-16, v4-16), ours (v5e-16), a shape (v5e:4x4), or several slices (2xv5e-16)"
