"""One plan from a request: what a process of its own does, so that libtpu's environment is its own too."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mvader_jax.bounds import NonNegativeInt, PositiveInt, between
from mvader_jax.errors import UserError
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.report import Plan, Subject, Work, make_plan
from mvader_jax.settings import Checked

if TYPE_CHECKING:
    from mvader_jax.train.config import Stage, TrainConfig

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Request(Checked):
    """What is to be planned.

    config, overrides, stage: as `mvader train`; job: "train" or "sample"; mesh: axes as
    `mvader train --mesh`; accumulate: microbatches, None for the stage's own; batch: images per step of the
    sample job; precomputed: parts of the batch that come computed before; effort: XLA's, -1 to 1; cache:
    whether kept results may be taken; search: rank meshes instead of compiling one.
    """

    config: str
    topology: str
    slices: PositiveInt = 1
    overrides: tuple[str, ...] = ()
    job: str = "train"
    stage: str = "diffusion"
    mesh: str = "fsdp=-1"
    accumulate: PositiveInt | None = None
    batch: NonNegativeInt = 0
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


def plan(request: Request, say: Say = lambda message: None) -> Plan:
    """Compiles the program and puts its plan together. Raises UserError for what cannot be planned."""
    prepare()
    from mvader_jax.parallel.mesh import make_mesh, parse_mesh
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.program import bytes_per_device, sample_program, train_program
    from mvader_jax.plan.topology import devices

    if request.job not in ("train", "sample"):
        raise UserError(f"unknown job {request.job!r}; accepted: train, sample")
    topology = parse_topology(request.topology, request.slices)
    config = planned(request)
    mesh = make_mesh(parse_mesh(request.mesh), devices(topology))
    if request.job == "sample":
        images = request.batch or mesh.size
        title, work = f"{config.name}: sampling", Work(images)
        program = sample_program(config.model, mesh, images)
        settings: dict[str, Any] = {"images": images, "steps": 50, "sampler": "plms"}
    else:
        stage = config.stage(request.stage)
        if request.accumulate is not None:
            stage = dataclasses.replace(stage, accumulate=request.accumulate)
        program = train_program(config, stage, mesh, request.precomputed)
        say("counting what the mathematics needs")
        title = f"{config.name}: training step of {request.stage}"
        work = Work(stage.batch_size, *counts(request, config, stage), stage.steps)
        settings = {
            "batch": stage.batch_size,
            "microbatches": stage.accumulate,
            "remat": stage.remat,
            "precomputed": ", ".join(request.precomputed) or "nothing",
            "iterations": stage.steps,
        }
    parts = {name: bytes_per_device(tree) for name, tree in program.parts.items()}
    compiled = compile_program(program, topology, request.effort, say, request.cache)
    settings |= {
        "effort": request.effort,
        "compiled in": f"{compiled['seconds']:.0f} s ({compiled['cpu_seconds']:.0f} s of CPU)",
        "by": _versions(compiled),
    }
    return make_plan(Subject(title, topology, dict(mesh.shape), settings), parts, compiled, work)


def candidates(request: Request, say: Say = lambda message: None) -> dict[str, Any]:
    """{"candidates": meshes and microbatches for a training step, best first (estimated; see `search`),
    "model_flops", "counted_flops": of a whole step, as in a plan}."""
    prepare()
    import jax
    from jax.sharding import AbstractMesh

    from mvader_jax.condition import PromptBatch
    from mvader_jax.data.batches import EncodedShapes
    from mvader_jax.models.components import abstract_components
    from mvader_jax.parallel.mesh import MeshConfig
    from mvader_jax.parallel.sharding import MESH_AXES, ShardingError, param_shardings
    from mvader_jax.plan import search
    from mvader_jax.train.assemble import batch_shape
    from mvader_jax.train.state import partition

    topology = parse_topology(request.topology, request.slices)
    config = planned(request)
    stage = config.stage(request.stage)
    say("counting what a step computes")
    needs, does = counts(request, config, stage)
    objective = stage.objective
    needed = objective.components(config.model, request.precomputed, drawn=stage.sample_every > 0)
    shapes, axes = abstract_components(config.model, needed)
    trained, frozen, _ = partition(shapes, {name: g.parameters for name, g in stage.groups.items()})

    def divides(mesh: MeshConfig) -> bool:
        sizes = tuple(getattr(mesh, axis) for axis in MESH_AXES)
        try:
            param_shardings(shapes, axes, AbstractMesh(sizes, MESH_AXES))
        except ShardingError:
            return False
        return True

    batch = objective.abstract_batch(
        *batch_shape(config.model, stage), config.model.tokenizer, EncodedShapes()
    )
    prompts = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, PromptBatch))
    tokens = sum(p.token_ids.size for p in prompts if isinstance(p, PromptBatch))
    work = search.Work(
        model=config.model,
        stage=stage,
        components=frozenset(needed),
        trained=frozenset(trained),
        frozen_size=_size(frozen),
        trained_size=_size(trained),
        flops=does,
        positions=tokens / stage.batch_size,
    )
    ranked = search.rank(topology, work, divides)
    found = search.describe(ranked, shown=len(ranked))
    return {"candidates": found, "model_flops": needs, "counted_flops": does}


def planned(request: Request) -> TrainConfig:
    """The request's config, with the model that is planned. Raises UserError where it has none."""
    from mvader_jax.train.config import load_config
    from mvader_jax.train.start import with_model

    config = load_config(request.config, request.overrides)
    return with_model(config, request.stage, f"runs/{config.name}")


def _size(tree: Any) -> float:
    import jax

    return float(sum(leaf.size for leaf in jax.tree.leaves(tree)))


def counts(request: Request, config: TrainConfig, stage: Stage) -> tuple[float, float]:
    """(FLOPs that the mathematics of a step needs, FLOPs with what remat repeats), kept by the config."""
    import hashlib

    from mvader_jax.plan.compile import cache_directory
    from mvader_jax.plan.counted import step_flops
    from mvader_jax.settings import to_dict
    from mvader_jax.storage.atomic import make_directory, write_file

    stage = dataclasses.replace(stage, accumulate=1, init=())
    recipe = json.dumps([2, to_dict(config.model), to_dict(stage), sorted(request.precomputed)], default=str)
    path = cache_directory() / f"count-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.json"
    if request.cache and path.is_file():
        needs, does = json.loads(path.read_text(encoding="utf-8"))
        return needs, does
    needs = step_flops(config, stage, request.precomputed)
    does = needs if stage.remat == "none" else step_flops(config, stage, request.precomputed, remat=True)
    if request.cache:
        make_directory(path.parent)
        write_file(path, json.dumps([needs, does]))
    return needs, does


def _versions(compiled: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in compiled["versions"].items())


def table(plans: Sequence[Mapping[str, Any]]) -> str:
    """Plans, as `Plan.to_dict` gives them, as a Markdown table."""
    head = (
        "| program | pod | mesh | micro-batches | peak of HBM, GiB | fits | FLOPs per chip, T | bound | arithmetic / "
        "memory / interconnect, ms | step, ms | images/s | utilisation | without overlap | days | chip-hours |"
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
            cells += [f"{f['flops'] / 1e12:.1f}", p["bound"], times, f"{1e3 * f['step_seconds']:.0f}"]
            cells += [f"{f['images_per_second']:,.0f}"]
            cells += [f"{100 * f[name]:.0f} %" for name in ("utilisation", "utilisation_without_overlap")]
            cells += [f"{f['days']:.1f}", f"{f['chip_hours']:,.0f}"]
        else:
            cells += ["", p["bound"], *[""] * 7]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
