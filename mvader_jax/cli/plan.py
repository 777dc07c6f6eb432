"""`mvader plan`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvader_jax.bounds import NON_NEGATIVE, POSITIVE, PositiveInt, between
from mvader_jax.cli._given import listed, refuse
from mvader_jax.cli._options import Quiet
from mvader_jax.cli._progress import status, tell
from mvader_jax.cli._stage import Objective, chosen_stage
from mvader_jax.errors import UserError

if TYPE_CHECKING:
    from mvader_jax.plan.request import Request


def plan(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Argument(help="a file, or a name of `mvader configs`; not with --reproduce")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as in stages.diffusion.remat=none")
    ] = None,
    topology: Annotated[
        str, typer.Option(help="the pod: v5e-8, v5litepod-16, v4-32, 2xv5e-256 or v5p:4x4x8")
    ] = "v5e-256",
    slices: Annotated[PositiveInt, typer.Option(help="such pods, joined by the data-centre network")] = 1,
    mesh: Annotated[
        str | None, typer.Option(help="axes of the mesh, as in data=16,fsdp=16 [default: one that fits]")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="rank meshes and batch splits, compile the best")
    ] = False,
    compiled: Annotated[
        int | None,
        NON_NEGATIVE,
        typer.Option(help="with --search: how many of the best to compile, 0 for none [default: 1]"),
    ] = None,
    job: Annotated[str, typer.Option(help="train or sample")] = "train",
    stage: Annotated[
        str | None, typer.Option(help="train: which of the config's stages [default: diffusion]")
    ] = None,
    accumulate: Annotated[
        int | None, POSITIVE, typer.Option(help="microbatches per step [default: the stage's]")
    ] = None,
    batch: Annotated[
        int | None, POSITIVE, typer.Option(help="sample: images per run [default: one per chip]")
    ] = None,
    precomputed: Annotated[
        str | None,
        typer.Option(help="parts of the batch that come computed, as in latents,features or latents,states"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="sample: float32 or bfloat16 [default: bfloat16]")] = None,
    frozen_dtype: Annotated[
        str | None,
        typer.Option(
            help="sample: what parameters are kept in, as mvader sample takes it [default: --dtype]"
        ),
    ] = None,
    effort: Annotated[
        float, between(-1, 1), typer.Option(help="of XLA, -1 (quick) to 1; 0 is its default")
    ] = -1.0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON to this file")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="compile again what was compiled before")
    ] = False,
    reproduce: Annotated[
        bool,
        typer.Option(
            "--reproduce", help="compile the steps that others measured, print predicted beside measured"
        ),
    ] = False,
    measured: Annotated[
        Path | None, typer.Option(help="with --reproduce: a file of such steps [default: tpu/measured.toml]")
    ] = None,
    blocks: Annotated[
        bool,
        typer.Option(
            "--blocks", help="sum XLA's cycles of the UNet's blocks, each compiled alone at default effort"
        ),
    ] = False,
    quiet: Quiet = False,
    objective: Objective = None,
) -> None:
    """Tell what a job would cost on a pod that is not there. Time and memory per chip, of a training step or of sampling.

    \b
    Examples:
      mvader plan open_v2 --topology v5e-256 --mesh data=4,fsdp=64
      mvader plan open_v2 --search
      mvader plan open_v2 --job sample --topology v5e-8
      mvader plan --reproduce
    """
    from mvader_jax.cli._witnesses import show_blocks, show_measured
    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan import report
    from mvader_jax.plan.request import Request
    from mvader_jax.plan.runner import run_request
    from mvader_jax.storage.atomic import write_file
    from mvader_jax.train.shipped import find_config

    if config is None and not reproduce:
        raise UserError("plan needs a config, a file or a name of `mvader configs`; or --reproduce")
    if job not in ("train", "sample"):
        raise UserError(f"unknown job {job!r}; accepted: train, sample")
    way = "reproduce" if reproduce else "blocks" if blocks else "search" if search else job
    if way == "train" and frozen_dtype is not None:
        raise UserError(
            "--frozen-dtype is for --job sample; a stage has its own, as in stages.diffusion.frozen_dtype=int8"
        )
    what, takes = _WAYS[way]
    refuse(context, what, {*takes.split(), "as_json", "quiet"})
    if way in ("blocks", "search") and job != "train":
        raise UserError(f"--{way} is for --job train")
    if out is not None:
        _check_out(out)
    if config is None:
        show_measured(measured, out, cache=not no_cache, quiet=quiet, as_json=as_json)
        return
    parse_topology(topology, slices)
    find_config(config)
    request = Request(
        config=config,
        topology=topology,
        slices=slices,
        overrides=tuple(overrides or ()),
        job=job,
        stage=chosen_stage(stage, objective),
        mesh=mesh or "",
        accumulate=accumulate,
        batch=batch or 0,
        dtype=dtype or Request.dtype,  # type: ignore[arg-type]
        frozen_dtype=frozen_dtype,  # type: ignore[arg-type]
        precomputed=listed("--precomputed", precomputed) or (),
        effort=effort,
        cache=not no_cache,
        search=search,
    )
    if blocks:
        show_blocks(request, quiet=quiet, as_json=as_json)
        return
    wanted = 1 if compiled is None else compiled
    with status("starting", quiet or as_json, at_once=True) as say:
        found = _searched(request, wanted, say) if search else {"plans": [run_request(request, say)]}
    if out is not None:
        write_file(out, json.dumps(found["plans"][0] if found["plans"] else found, indent=1) + "\n")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if search:
        print(_table(found["candidates"][:10]), end="\n\n")
    for one in found["plans"]:
        print(report.text(report.from_dict(one)))
    if not found["plans"] and wanted:
        raise UserError("none of the meshes compiles")


#: What may be asked for: how it is called, and the parameters that go with it alone.
_JOB = "config overrides topology slices job "
_PLAN = _JOB + "effort out no_cache "
_WAYS = {
    "train": ("--job train", _PLAN + "mesh stage objective accumulate precomputed"),
    "sample": ("--job sample", _PLAN + "mesh batch dtype frozen_dtype"),
    "search": ("--search", _PLAN + "search compiled stage objective precomputed"),
    "blocks": ("--blocks", _JOB + "blocks stage objective accumulate"),
    "reproduce": ("--reproduce, whose steps are given", "reproduce measured out no_cache"),
}


def _searched(request: Request, wanted: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The meshes, ranked, and the plans of the `wanted` best that compile."""
    from mvader_jax.plan.runner import ask, run_request

    ranked = ask("mvader_jax.plan.request", request.to_json(), say)
    if "error" in ranked:
        raise UserError(ranked["error"])
    plans: list[dict[str, Any]] = []
    for best in ranked["candidates"]:
        if len(plans) >= wanted:
            break
        mesh = best["mesh"]
        chosen = dataclasses.replace(request, search=False, mesh=mesh, accumulate=best["microbatches"])
        try:
            plans.append(run_request(chosen, _prefixed(say, mesh)))
        except UserError as error:
            tell(f"mvader: {mesh}: {error}")
    return {**ranked, "plans": sorted(plans, key=_rank)}


def _check_out(out: Path) -> None:
    """Raises UserError where a plan could not be written, or would replace what is no plan."""
    from mvader_jax.storage.atomic import local, make_directory

    make_directory(local(out).parent)
    if not os.path.lexists(out) or (out.exists() and not out.is_file() and not out.is_dir()):
        return  # nothing, or a device such as /dev/stdout
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
        known = bool({"title", "candidates"} & found.keys()) or all(
            "launches" in one for one in found.values()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        known = False
    if not known:
        raise UserError(f"{str(out)!r} exists already and holds no plan; choose another --out")


def _prefixed(say: Callable[[str], None], mesh: str) -> Callable[[str], None]:
    return lambda text: say(f"{mesh}: {text}")


def _rank(plan: dict[str, Any]) -> tuple[bool, float]:
    step = plan["figures"].get("expected_seconds", {"value": float("inf")})
    return (not plan["fits"], step["value"])


def _table(candidates: list[dict[str, Any]]) -> str:
    lines = ["estimated, best first (memory per chip; a step's arithmetic and interconnect):"]
    for c in candidates:
        lines.append(
            f"  {c['mesh']:<32}{c['microbatches']:>4} microbatches{c['memory_gib']:>8.2f} GiB"
            f"{c['arithmetic_ms']:>9.1f} ms{c['interconnect_ms']:>9.1f} ms"
        )
    return "\n".join(lines)
