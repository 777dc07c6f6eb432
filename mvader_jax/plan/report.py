"""What a plan says: figures per chip, each with how it was found, the bounds, what is expected, and what they come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mvader_jax.parallel.pods import Chip, Topology, parse_topology
from mvader_jax.plan.expected import Features, expect

#: compiled: read from the program that XLA made for the pod. counted: from shapes and shardings, exact.
#: estimated: divided by the chip's numbers, or modelled. expected: fitted to what was measured on TPUs.
Kind = Literal["compiled", "counted", "estimated", "expected"]
#: Memory that a plan wants to see free.
SPARE = 0.05


@dataclasses.dataclass(frozen=True)
class Figure:
    value: float
    kind: Kind
    unit: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program on one mesh of one pod. figures: by name, each per chip; notes: what to doubt."""

    title: str
    topology: Topology
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    figures: Mapping[str, Figure]
    collectives: tuple[Mapping[str, Any], ...]
    bound: str
    fits: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; numbers are rounded to nine digits."""
        return {
            "title": self.title,
            "topology": {
                "name": self.topology.name,
                "slices": self.topology.slices,
                "chips": self.topology.chips,
                "chip": dataclasses.asdict(self.topology.chip),
            },
            "mesh": dict(self.mesh),
            "settings": dict(self.settings),
            "figures": {
                name: {"value": float(f"{f.value:.9g}"), "kind": f.kind, "unit": f.unit}
                for name, f in self.figures.items()
            },
            "collectives": [
                {k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in row.items()}
                for row in self.collectives
            ],
            "bound": self.bound,
            "fits": self.fits,
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is planned, where. settings: what a person should see of it."""

    title: str
    topology: Topology
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does over the whole pod, where it is known.

    images: pictures; model_flops: what the mathematics needs; counted_flops: what the step does by its jaxpr;
    iterations: steps of the whole run.
    """

    images: int
    model_flops: float | None = None
    counted_flops: float | None = None
    iterations: int | None = None


def make_plan(subject: Subject, parts: Mapping[str, int], compiled: Mapping[str, Any], work: Work) -> Plan:
    """Puts a plan together.

    parts: {what of the arguments: bytes per device}; compiled: as `compile_program`.
    """
    topology, chip = subject.topology, subject.topology.chip
    cores, memory = chip.cores, compiled["memory"]
    f: dict[str, Figure] = {
        name.replace(" ", "_"): Figure(size * cores, "counted", "B") for name, size in parts.items()
    }
    f["hbm"] = Figure(chip.hbm_bytes, "counted", "B")
    whole = (subject.title, topology, subject.mesh, subject.settings, f)
    if "needed" in memory:
        f["peak"] = Figure(memory["needed"] * cores, "compiled", "B")
        refused = "XLA refuses the program: it does not fit, so its times are not known"
        return Plan(*whole, (), "memory capacity", False, (refused,))
    f["activations"] = Figure(memory["temporaries"] * cores, "compiled", "B")
    f["peak"] = Figure(memory["peak"] * cores, "compiled", "B")
    notes: list[str] = []
    fits = f["peak"].value <= (1 - SPARE) * chip.hbm_bytes
    if not fits and f["peak"].value <= chip.hbm_bytes:
        notes.append(f"it compiles, but leaves less than {SPARE:.0%} of the memory free")
    times = _times(f, compiled, chip)
    notes += _step(f, times, work, topology)
    notes += [*_run(f, work, topology, subject.settings["effort"]), *_doubts(compiled, times)]
    bound = max(times, key=lambda name: times[name])
    return Plan(*whole, tuple(compiled["collectives"]), bound, fits, tuple(notes))


def _times(f: dict[str, Figure], compiled: Mapping[str, Any], chip: Chip) -> dict[str, float]:
    """Seconds by what bounds them; adds them, and what is moved and computed, to the figures."""
    cores, collectives = chip.cores, compiled["collectives"]
    flops, moved = compiled["flops"] * cores, compiled["bytes"] * cores
    f["flops"] = Figure(flops, "compiled", "FLOP")
    f["convolution_flops"] = Figure(compiled["convolution_flops"] * cores, "compiled", "FLOP")
    f["kernel_flops"] = Figure(compiled["kernel_flops"] * cores, "compiled", "FLOP")
    f["bytes"] = Figure(moved, "compiled", "B")
    f["launches"] = Figure(compiled["launches"], "compiled", "1")
    f["collective_bytes"] = Figure(sum(r["wire"] for r in collectives) * cores, "compiled", "B")
    times = {
        "arithmetic": flops / chip.peak,
        "memory": moved / (chip.hbm_gbps * 1e9),
        "interconnect": sum(r["seconds"] for r in collectives),
    }
    for name, seconds in times.items():
        f[f"{name}_seconds"] = Figure(seconds, "estimated", "s")
    return times


def _step(f: dict[str, Figure], times: Mapping[str, float], work: Work, topology: Topology) -> list[str]:
    """Adds a step's bounds and what it needs to the figures; what to doubt of it."""
    chips = topology.chips
    f["step_seconds"] = Figure(max(times.values()), "estimated", "s")
    f["step_seconds_without_overlap"] = Figure(sum(times.values()), "estimated", "s")
    if work.model_flops is not None:
        f["model_flops"] = Figure(work.model_flops / chips, "counted", "FLOP")
    notes = []
    if work.counted_flops is not None:
        f["counted_flops"] = Figure(work.counted_flops / chips, "counted", "FLOP")
        ratio = f["flops"].value * chips / work.counted_flops
        if not 0.9 <= ratio <= 1.5:
            notes.append(
                f"the compiled FLOPs are {ratio:.2f} times the counted ones: work is repeated on several chips, or a "
                "loop was not read"
            )
    return notes


def _run(f: dict[str, Figure], work: Work, topology: Topology, effort: float) -> list[str]:
    """Adds what a step is expected to take, and a run to cost, to the figures; what that rests on."""
    arithmetic, memory, interconnect = (
        f[f"{name}_seconds"].value for name in ("arithmetic", "memory", "interconnect")
    )
    others = f["convolution_flops"].value + f["kernel_flops"].value
    features = Features(arithmetic, memory, interconnect, f["launches"].value, 1 - others / f["flops"].value)
    expected = expect(topology, features, effort, training=work.iterations is not None)
    seconds = expected.seconds
    found = {
        "expected_seconds": Figure(seconds, "expected", "s"),
        "expected_least": Figure(expected.least, "expected", "s"),
        "expected_most": Figure(expected.most, "expected", "s"),
        "images_per_second": Figure(work.images / seconds, "expected", "1/s"),
        "images_per_second_per_chip": Figure(work.images / seconds / topology.chips, "expected", "1/s"),
    }
    if "model_flops" in f:
        found["utilisation"] = Figure(f["model_flops"].value / topology.chip.peak / seconds, "expected", "")
    if work.iterations is not None:
        found["days"] = Figure(seconds * work.iterations / 86400, "expected", "d")
        found["chip_hours"] = Figure(seconds * work.iterations / 3600 * topology.chips, "expected", "h")
    f.update(found)
    return expected.notes


def refitted(plan: Plan) -> Plan:
    """A plan that was kept, with what is expected by the present fit."""
    if "flops" not in plan.figures:
        return plan
    figures, settings = dict(plan.figures), plan.settings
    work = Work(settings.get("batch") or settings["images"], iterations=settings.get("iterations"))
    known = [note for note in plan.notes if not note.startswith("expected ")]
    notes = _run(figures, work, plan.topology, settings["effort"])
    return dataclasses.replace(plan, figures=figures, notes=(*known, *notes))


def _doubts(compiled: Mapping[str, Any], times: Mapping[str, float]) -> list[str]:
    """What of XLA's own estimates is not to be believed, and why."""
    notes = []
    optimal = compiled.get("xla", {}).get("optimal_seconds")
    floor = max(times["arithmetic"], times["memory"])
    if optimal is None:
        notes.append("XLA gives no optimal_seconds for this program")
    elif optimal <= 0:
        notes.append(f"XLA's optimal_seconds is {optimal:.3g}, which cannot be: not used")
    elif optimal < floor:
        notes.append(
            f"XLA's optimal_seconds is {optimal:.3g} s, below the floors (it counts a loop's body once): not used"
        )
    else:
        notes.append(f"XLA's own optimal_seconds is {optimal:.3g} s, above both floors")
    if compiled["saturated"]:
        notes.append(f"{compiled['saturated']} of XLA's cycle estimates overflowed: cycles are not used")
    if compiled["unknown_loops"]:
        notes.append(
            f"the trip count of {compiled['unknown_loops']} loops could not be read: they count once"
        )
    return notes


_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def readable(figure: Figure) -> str:
    """A figure for people: 12.3 GiB, 4.56 TFLOP, 78.9 ms."""
    value, unit = figure.value, figure.unit
    if unit == "B":
        for size, prefix in ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi")):
            if value >= size:
                return f"{value / size:.2f} {prefix}B"
        return f"{value / 1024:.1f} KiB"
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.1f} s"
    if unit == "FLOP":
        for power, prefix in _PREFIXES:
            if value >= power:
                return f"{value / power:.2f} {prefix}FLOP"
    if unit == "":
        return f"{100 * value:.1f} %"
    if unit == "1":
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


LINES = {
    "frozen_weights": "frozen weights",
    "trained_weights": "weights that train",
    "optimizer": "optimizer",
    "average": "their average (EMA)",
    "batch": "batch",
    "activations": "activations and other temporaries",
    "peak": "peak",
    "hbm": "the chip has",
    "flops": "FLOPs, loops multiplied out",
    "convolution_flops": "of these in convolutions",
    "kernel_flops": "of these in attention kernels",
    "counted_flops": "FLOPs by the jaxpr",
    "model_flops": "FLOPs the mathematics needs",
    "bytes": "bytes of HBM",
    "launches": "instructions",
    "collective_bytes": "bytes sent to other chips",
    "arithmetic_seconds": "arithmetic",
    "memory_seconds": "memory",
    "interconnect_seconds": "interconnect",
    "step_seconds": "a step at least, all overlapping",
    "step_seconds_without_overlap": "at least, nothing overlapping",
    "expected_seconds": "a step, expected",
    "expected_least": "from",
    "expected_most": "to",
    "images_per_second": "images per second, whole pod",
    "images_per_second_per_chip": "per chip",
    "utilisation": "model FLOPs utilisation",
    "days": "days for the config's iterations",
    "chip_hours": "chip-hours",
}


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The inverse of `Plan.to_dict`."""
    topology = data["topology"]
    return Plan(
        data["title"],
        parse_topology(topology["name"], topology["slices"]),
        data["mesh"],
        data["settings"],
        {name: Figure(**figure) for name, figure in data["figures"].items()},
        tuple(data["collectives"]),
        data["bound"],
        data["fits"],
        tuple(data["notes"]),
    )


def text(plan: Plan) -> str:
    """A plan for people, a figure a line with how it was found."""
    t = plan.topology
    mesh = ",".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    slices = f"{t.slices} slices of " if t.slices > 1 else ""
    lines = [
        f"{plan.title} on {slices}{t.name} ({t.chips} x {t.chip.name}), mesh {mesh}",
        ", ".join(f"{key} {value}" for key, value in plan.settings.items()),
        "",
        "per chip:",
    ]
    for name, label in LINES.items():
        if name in plan.figures:
            figure = plan.figures[name]
            mark = "  <- bounds the step" if name == f"{plan.bound}_seconds" else ""
            lines.append(f"  {label:<36}{readable(figure):>14}  {figure.kind}{mark}")
    lines.append(f"  {'fits, with 5 % spare':<36}{'yes' if plan.fits else 'NO':>14}")
    if plan.collectives:
        lines += ["", "collectives a step (bytes sent: compiled; time: estimated):"]
        for row in plan.collectives:
            sent, seconds = Figure(row["wire"], "compiled", "B"), Figure(row["seconds"], "estimated", "s")
            lines.append(
                f"  {row['kind']:<20}{row['axes']:<16}{row['count']:>6} x{readable(sent):>14}{readable(seconds):>12}"
            )
    if plan.notes:
        lines += ["", *(f"note: {note}" for note in plan.notes)]
    lines += ["", f"chip: {t.chip.source}"]
    return "\n".join(lines)
