"""What a step will take: fitted to steps that others measured on TPUs (`measured.toml`).

A chip takes longer than its bounds (`report.py`): it reaches neither its peak nor its links, some of what goes to memory
is not hidden behind arithmetic, and every instruction takes a time of its own to start. So

    expected = slowness x (arithmetic + exposed x memory + interconnect) + launch x instructions

with two numbers, slowness and launch, fitted to the measured steps of JAX by the least sum of squared relative errors, and a
third, `EXPOSED`, chosen. Steps of other software are so many times slower as its rows say. What is not like the measured
steps, another generation or other work, is an extrapolation and gets a range: over all ways to weigh the four terms that
predict every measured step as well.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.parallel.pods import Topology, parse_topology

#: A link to tpu/measured.toml; an installed package has the file here.
MEASURED = Path(__file__).with_name("measured.toml")
#: What was read from the compiled steps; `mvader plan --reproduce --out` makes it.
RECORDED = Path(__file__).with_name("recorded.json")
#: XLA's effort at which they were compiled. A plan at another one has other bytes and instructions.
EFFORT = -1.0
#: The share of memory's time that is not hidden: chosen, with all measured steps in view (fitted freely to them it is .43,
#: but v5p's steps alone cannot tell it). Leaving a step of JAX out errs by 4 % at most with a half, by 12 % with a
#: quarter, by 30 % with none, by 21 % with all of it.
EXPOSED = 0.5
#: Whose steps `expected` is of.
SOFTWARE = "JAX"
#: How far a share may lie above that of the measured steps before it is said.
_SHARE = 0.1
#: How many times slower than its bound a chip may be thought: at arithmetic, at memory, at interconnect.
_SLOWEST = (3.0, 3.0, 2.0)


class Step(NamedTuple):
    """A measured step. pod: Google's name; batch: samples per chip; ms: milliseconds."""

    pod: str
    batch: int
    ms: float
    software: str
    source: str

    @property
    def topology(self) -> Topology:
        return parse_topology(self.pod)

    @property
    def key(self) -> str:
        """What its compiled program is recorded under: the chips of every pod run the same one."""
        return f"{self.topology.generation} x {self.batch}"


@dataclasses.dataclass(frozen=True)
class Features:
    """Of a compiled step. arithmetic, memory, interconnect: seconds at the least; launches: instructions that run;
    products: the share of matrix products in its FLOPs."""

    arithmetic: float
    memory: float
    interconnect: float
    launches: float
    products: float

    @property
    def sum(self) -> float:
        """Of the bounds, seconds."""
        return self.arithmetic + self.memory + self.interconnect

    @property
    def bound(self) -> float:
        """What a step takes at least."""
        return max(self.arithmetic, self.memory, self.interconnect)

    @property
    def work(self) -> float:
        """Of the bounds, what is not hidden."""
        return self.arithmetic + EXPOSED * self.memory + self.interconnect

    @property
    def terms(self) -> tuple[float, float, float, float]:
        return self.arithmetic, self.memory, self.interconnect, self.launches


class Row(NamedTuple):
    """A measured step with the features of its program."""

    features: Features
    seconds: float
    software: str = SOFTWARE


@dataclasses.dataclass(frozen=True)
class Fit:
    """slowness: of what is not hidden of the bounds; launch: seconds per instruction; software: {other software: how
    many times slower}."""

    slowness: float
    launch: float
    software: Mapping[str, float]

    def seconds(self, features: Features, software: str = SOFTWARE) -> float:
        """Never less than a bound. Of software that no row is of, as of JAX."""
        own = self.slowness * features.work + self.launch * features.launches
        return max(own, features.bound) * self.software.get(software, 1.0)


class Expectation(NamedTuple):
    """seconds, and between which it may lie; notes: what it rests on."""

    seconds: float
    least: float
    most: float
    notes: list[str]


def read_measured(path: Path = MEASURED) -> list[Step]:
    """The TPU rows of a file. Raises UserError where it has none."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["tpu"]
        steps = [Step(**{name: row[name] for name in Step._fields}) for row in rows]
        for step in steps:
            if not (isinstance(step.batch, int) and step.batch > 0 and float(step.ms) > 0):
                raise ValueError(f"batch is {step.batch!r} and ms {step.ms!r}; both must be positive")
            parse_topology(step.pod)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:  # tomllib's own is a ValueError
        fields = ", ".join(Step._fields)
        raise UserError(f"{str(path)!r} needs [[tpu]] rows of {fields}: {error}") from None
    return steps


@functools.cache
def recorded() -> dict[str, Any]:
    """{step's key: what its compiled program does per chip, as `reproduce.record` says}."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def features_of(step: Step, program: Mapping[str, float]) -> Features:
    """Of a measured step by what was recorded of its program; gradients are summed over all of its pod's chips."""
    topology, n = step.topology, step.topology.chips
    chip, flops = topology.chip, program["flops"]
    everywhere = itertools.product(*map(range, topology.shape))
    wire = 2.0 * program["reduced"] * (n - 1) / n
    return Features(
        flops * chip.cores / chip.peak,
        program["bytes"] * chip.cores / (chip.hbm_gbps * 1e9),
        wire / topology.bandwidth(everywhere),
        program["launches"],
        1 - (program["convolution_flops"] + program["kernel_flops"]) / flops,
    )


def rows_of(steps: Sequence[Step], programs: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """programs: {step's key: what was recorded}."""
    return [Row(features_of(step, programs[step.key]), step.ms / 1e3, step.software) for step in steps]


def fit(rows: Sequence[Row]) -> Fit:
    """Neither number is negative. rows: at least one of JAX."""
    own = [row for row in rows if row.software == SOFTWARE]
    terms = np.array([[row.features.work, row.features.launches] for row in own])
    terms = terms / np.array([[row.seconds] for row in own])
    both = np.linalg.lstsq(terms, np.ones(len(own)), rcond=None)[0]
    if min(both) < 0:
        # With one of them alone: the better of two projections.
        alone = terms.sum(axis=0) / (terms**2).sum(axis=0)
        kept = int(np.argmin(((terms * alone - 1) ** 2).sum(axis=0)))
        both = np.where(np.arange(2) == kept, alone, 0.0)
    found = Fit(float(both[0]), float(both[1]), {})
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row.software != SOFTWARE:
            ratios.setdefault(row.software, []).append(row.seconds / found.seconds(row.features))
    return dataclasses.replace(found, software={name: float(np.mean(r)) for name, r in ratios.items()})


def leave_one_out(rows: Sequence[Row]) -> list[float]:
    """For each row, how far what the others alone predict of it is off: 0.1 is a tenth too long."""
    return [
        fit([*rows[:i], *rows[i + 1 :]]).seconds(row.features, row.software) / row.seconds - 1
        for i, row in enumerate(rows)
    ]


class _Fitted(NamedTuple):
    steps: list[Step]
    rows: list[Row]
    fit: Fit
    error: float


@functools.cache
def fitted() -> _Fitted:
    """What this project's plans are fitted to; error: the largest that leaving a row out makes."""
    steps = read_measured()
    rows = rows_of(steps, recorded())
    return _Fitted(steps, rows, fit(rows), max(map(abs, leave_one_out(rows))))


def expect(topology: Topology, features: Features, effort: float, *, training: bool) -> Expectation:
    """What a program takes per run.

    effort: at which it was compiled. training: whether it is a training step, as all that was measured.
    """
    steps, rows, best, error = fitted()
    seconds = best.seconds(features)
    notes = [
        f"expected is fitted to {len(steps)} measured steps of Stable Diffusion 2's UNet on "
        f"{' and '.join(_generations(steps))} (tpu/measured.toml); leaving one out it misses it by at most {error:.0%}"
    ]
    new = _unlike(topology, features, effort, training)
    least, most = seconds * (1 - error), seconds * (1 + error)
    if new:
        notes.append(f"expected is an extrapolation: {'; '.join(new)}")
        ends = _range(rows, features, error)
        least, most = min(least, ends[0]), max(most, ends[1])
    return Expectation(seconds, max(least, features.bound), most, notes)


def _generations(steps: Sequence[Step]) -> list[str]:
    return sorted({step.topology.generation for step in steps})


def _unlike(topology: Topology, features: Features, effort: float, training: bool) -> list[str]:
    """In what a program is not like those that were measured, a phrase each."""
    steps, rows, *_ = fitted()
    new = []
    if topology.generation not in _generations(steps):
        new.append(f"no step was measured on {topology.generation}")
    if topology.slices > 1:
        new.append("none was measured on several slices")
    if not training:
        new.append("it is fitted to no drawing")
    if effort != EFFORT:
        new.append(f"the measured steps were compiled at effort {EFFORT:g}")
    products = max(row.features.products for row in rows)
    if features.products > products + _SHARE:
        new.append(
            f"{features.products:.0%} of its FLOPs are matrix products, of those measured {products:.0%}"
        )
    links, most = (max(f.interconnect / f.sum for f in fs) for fs in ([features], [r.features for r in rows]))
    if links > most + _SHARE:
        new.append(f"{links:.0%} of its bounds are interconnect, of those measured at most {most:.0%}")
    return new


def _range(rows: Sequence[Row], features: Features, error: float) -> tuple[float, float]:
    """The least and the most that any weights of the four terms say which predict all measured steps of JAX to within
    `error`; no weight is negative, none beyond `_SLOWEST`."""
    from scipy.optimize import linprog

    own = [row for row in rows if row.software == SOFTWARE]
    terms = np.array([row.features.terms for row in own]) / np.array([[row.seconds] for row in own])
    within = np.concatenate([np.full(len(own), 1 + error), np.full(len(own), error - 1)])
    ends = []
    for sign in (1.0, -1.0):
        found = linprog(
            sign * np.array(features.terms),
            A_ub=np.concatenate([terms, -terms]),
            b_ub=within,
            bounds=[*((0.0, slowest) for slowest in _SLOWEST), (0.0, None)],
        )
        # The fit itself may miss a row that it knows by more, though it seldom does.
        ends.append(sign * found.fun if found.success else fit(own).seconds(features))
    return ends[0], ends[1]


def table(steps: Sequence[Step], programs: Mapping[str, Mapping[str, float]]) -> str:
    """Predicted beside measured, a step a row, as Markdown; each predicted from the others' fit alone.

    programs: {step's key: what `reproduce.record` says}.
    """
    known = fitted()
    head = (
        "| pod | batch per chip | software | arithmetic / memory / interconnect, ms | instructions | measured, ms | "
        "predicted without it, ms | error |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for step, row in zip(steps, rows_of(steps, programs), strict=True):
        others = [other for other, one in zip(known.rows, known.steps, strict=True) if one != step]
        ms = 1e3 * fit(others).seconds(row.features, step.software)
        times = " / ".join(f"{1e3 * seconds:.0f}" for seconds in row.features.terms[:3])
        cells = [step.pod, str(step.batch), step.software, times, f"{row.features.launches:,.0f}"]
        cells += [f"{step.ms:.1f}", f"{ms:.1f}", f"{100 * (ms / step.ms - 1):+.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
