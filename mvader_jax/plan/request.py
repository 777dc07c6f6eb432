"""One plan from a request: what a process of its own does, so that libtpu's environment is its own too."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from mvader_jax.bounds import FrozenDtype, NonNegativeInt, PositiveInt, between
from mvader_jax.errors import UserError
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.parallel.pods import Topology, parse_topology
from mvader_jax.plan.report import Plan, Subject, Work, make_plan
from mvader_jax.settings import Checked

if TYPE_CHECKING:
    from mvader_jax.plan.program import Program
    from mvader_jax.train.config import TrainConfig

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Request(Checked):
    """What is to be planned.

    config, overrides, stage: as `mvader train`; job: "train" or "sample"; mesh: axes as `mvader train --mesh`, empty
    for one that is chosen; accumulate: microbatches, None for the stage's own; batch, dtype, frozen_dtype: of the sample
    job, images per run, what it computes in and what it keeps parameters in; precomputed: parts of the batch that come
    computed before; effort: XLA's, -1 to 1; cache: whether kept results may be taken; search: rank meshes instead of
    compiling one.
    """

    config: str
    topology: str
    slices: PositiveInt = 1
    overrides: tuple[str, ...] = ()
    job: str = "train"
    stage: str = "diffusion"
    mesh: str = ""
    accumulate: PositiveInt | None = None
    batch: NonNegativeInt = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    frozen_dtype: FrozenDtype | None = None
    precomputed: tuple[str, ...] = ()
    effort: Annotated[float, between(-1, 1)] = -1.0
    cache: bool = True
    search: bool = False

    @classmethod
    def from_json(cls, text: str) -> Request:
        values = json.loads(text)
        for name in ("overrides", "precomputed"):
            values[name] = tuple(values[name])
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


class Planned(NamedTuple):
    """What is to be compiled and what it does; notes: what to say of it beforehand."""

    program: Program
    subject: Subject
    work: Work
    notes: list[str]


def plan(request: Request, say: Say = lambda message: None) -> Plan:
    """Compiles the program and puts its plan together. Raises UserError for what cannot be planned."""
    prepare()
    from mvader_jax.parallel.sharding import bytes_per_device
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.states import states_note

    if request.job not in ("train", "sample"):
        raise UserError(f"unknown job {request.job!r}; accepted: train, sample")
    topology = parse_topology(request.topology, request.slices)
    config = planned(request)
    build = _sampling if request.job == "sample" else _training
    program, subject, work, notes = build(request, config, topology, say)
    parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    compiled = compile_program(program, topology, request.effort, say, request.cache)
    settings = {
        **subject.settings,
        "effort": request.effort,
        "compiled in": f"{compiled['seconds']:.0f} s ({compiled['cpu_seconds']:.0f} s of CPU)",
        "by": _versions(compiled),
    }
    made = make_plan(dataclasses.replace(subject, settings=settings), parts, compiled, work)
    if "states" in request.precomputed:
        states = config.stage(request.stage).objective.states(config.model)
        step = made.figures.get("step_seconds")
        samples = program.images
        notes.append(states_note(states, program.arguments[1], samples, step.value if step else None))
    return dataclasses.replace(made, notes=(*notes, *made.notes))


def _sampling(request: Request, config: TrainConfig, topology: Topology, say: Say) -> Planned:
    from mvader_jax.parallel.mesh import make_mesh, parse_mesh
    from mvader_jax.plan.choice import choose_sampling
    from mvader_jax.plan.program import sample_program
    from mvader_jax.plan.topology import devices

    images = request.batch or topology.devices
    notes: list[str] = []
    if request.mesh:
        mesh = parse_mesh(request.mesh)
    else:
        mesh, why = choose_sampling(topology, config.model, images, request.dtype, request.frozen_dtype)
        notes.append(why)
        say(why)
    program = sample_program(
        config.model,
        make_mesh(mesh, devices(topology)),
        images,
        dtype=request.dtype,
        frozen_dtype=request.frozen_dtype,
    )
    settings = {"images": images, "dtype": request.dtype, "steps": 50, "sampler": "plms"}
    if request.frozen_dtype is not None:
        settings["kept in"] = request.frozen_dtype
    subject = Subject(f"{config.name}: sampling", topology, dict(program.mesh.shape), settings)
    return Planned(program, subject, Work(images), notes)


def _training(request: Request, config: TrainConfig, topology: Topology, say: Say) -> Planned:
    from mvader_jax.parallel.mesh import make_mesh, parse_mesh
    from mvader_jax.plan.choice import choose
    from mvader_jax.plan.counted import kept_flops
    from mvader_jax.plan.program import train_program
    from mvader_jax.plan.topology import devices

    stage = config.stage(request.stage)
    notes: list[str] = []
    exact = request.accumulate is not None
    stage = dataclasses.replace(stage, accumulate=request.accumulate or stage.accumulate)

    def counted(remat: bool) -> float:
        say("counting what the mathematics needs")
        return kept_flops(config, stage, request.precomputed, remat=remat, cache=request.cache)

    found = devices(topology)
    if request.mesh:
        mesh = parse_mesh(request.mesh)
    else:
        flops = functools.partial(counted, True)
        choice = choose(topology, config, stage, request.precomputed, flops=flops, more=not exact)
        mesh, stage = choice.mesh, dataclasses.replace(stage, accumulate=choice.accumulate)
        notes.append(choice.why)
        say(choice.why)
    program = train_program(config, stage, make_mesh(mesh, found), request.precomputed)
    work = Work(stage.batch_size, counted(False), counted(True), stage.steps)
    settings = {
        "batch": stage.batch_size,
        "microbatches": stage.accumulate,
        "remat": stage.remat,
        "precomputed": ", ".join(request.precomputed) or "nothing",
        "iterations": stage.steps,
    }
    title = f"{config.name}: training step of {request.stage}"
    subject = Subject(title, topology, dict(program.mesh.shape), settings)
    return Planned(program, subject, work, notes)


def candidates(request: Request, say: Say = lambda message: None) -> dict[str, Any]:
    """{"candidates": meshes and microbatches for a training step, best first (estimated; see `search`),
    "model_flops", "counted_flops": of a whole step, as in a plan}."""
    prepare()
    from mvader_jax.plan import search
    from mvader_jax.plan.choice import rank
    from mvader_jax.plan.counted import kept_flops

    topology = parse_topology(request.topology, request.slices)
    config = planned(request)
    stage = config.stage(request.stage)
    say("counting what a step computes")
    needs, does = (
        kept_flops(config, stage, request.precomputed, remat=remat, cache=request.cache)
        for remat in (False, True)
    )
    found = search.describe(rank(topology, config, stage, request.precomputed, does))
    return {"candidates": found, "model_flops": needs, "counted_flops": does}


def planned(request: Request) -> TrainConfig:
    """The request's config, with the model that is planned. Raises UserError where it has none."""
    from mvader_jax.train.config import load_config
    from mvader_jax.train.start import with_model

    config = load_config(request.config, request.overrides)
    return with_model(config, request.stage, f"runs/{config.name}")


def _versions(compiled: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in compiled["versions"].items())


def table(plans: Sequence[Mapping[str, Any]]) -> str:
    """Plans of training, as `Plan.to_dict` gives them, as a Markdown table."""
    head = (
        "| program | pod | mesh | micro-batches | peak of HBM, GiB | fits | FLOPs per chip, T | arithmetic / "
        "memory / interconnect, ms | at least, ms | expected, ms | from - to | images/s | utilisation | days | chip-hours |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for p in plans:
        f = {name: figure["value"] for name, figure in p["figures"].items()}
        topology = p["topology"]
        pod = f"{topology['slices']} x {topology['name']}" if topology["slices"] > 1 else topology["name"]
        mesh = ",".join(f"{axis}={size}" for axis, size in p["mesh"].items() if size > 1)
        memory = f"{f['peak'] / 2**30:.1f} of {f['hbm'] / 2**30:.0f}"
        cells = [p["title"].split(":")[0], pod, mesh, str(p["settings"].get("microbatches", "")), memory]
        cells.append("yes" if p["fits"] else "**no**")
        if "step_seconds" in f:
            times = " / ".join(
                f"{1e3 * f[f'{name}_seconds']:.0f}" for name in ("arithmetic", "memory", "interconnect")
            )
            cells += [f"{f['flops'] / 1e12:.1f}", times, f"{1e3 * f['step_seconds']:.0f}"]
            cells += [f"{1e3 * f['expected_seconds']:.0f}", span(f, 1e3)]
            cells += [f"{f['images_per_second']:,.0f}", f"{100 * f['utilisation']:.0f} %"]
            cells += [f"{f['days']:.1f}", f"{f['chip_hours']:,.0f}"]
        else:
            cells += [""] * 9
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(figures: Mapping[str, float], times: float, digits: int = 0) -> str:
    """From where to where a time is expected, in seconds `times` so much."""
    return " - ".join(f"{times * figures[f'expected_{end}']:.{digits}f}" for end in ("least", "most"))


def main() -> None:
    """Reads a request from standard input; writes the plan, or {"error": ...}, as its last line."""
    request = Request.from_json(sys.stdin.read())

    def say(message: str) -> None:
        print(f"progress: {message}", file=sys.stderr, flush=True)

    try:
        answer: dict[str, Any] = {}
        if request.search:
            answer = candidates(request, say)
        else:
            answer["plan"] = plan(request, say).to_dict()
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
