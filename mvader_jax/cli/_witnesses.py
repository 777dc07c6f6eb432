"""What `mvader plan` is judged by: steps that others measured, and XLA's own cycles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvader_jax.cli._progress import status
from mvader_jax.errors import UserError
from mvader_jax.plan.request import Request

Say = Callable[[str], None]


def show_measured(
    measured: Path | None, out: Path | None, *, cache: bool, quiet: bool, as_json: bool
) -> None:
    """Compiles the steps of a file of measured ones, each as it was run, and prints what is predicted of them.

    out: where to write what was read from the programs (as mvader_jax/plan/recorded.json).
    """
    from mvader_jax.plan import expected
    from mvader_jax.storage.atomic import write_file

    steps = expected.read_measured(measured or expected.MEASURED)
    programs: dict[str, Any] = {}
    with status("starting", quiet or as_json, at_once=True) as say:
        for step in steps:
            if step.key not in programs:
                asked = {"generation": step.topology.generation, "batch": step.batch, "cache": cache}
                programs[step.key] = _ask("reproduce", asked, "step", step.key, say)
    if out is not None:
        write_file(out, json.dumps(programs, indent=1) + "\n")
    print(json.dumps(programs, indent=1) if as_json else expected.table(steps, programs))


def show_blocks(request: Request, *, quiet: bool, as_json: bool) -> None:
    """Compiles each distinct block of a stage's UNet at XLA's default effort, and prints its cycles and their sum.

    Each is kept as soon as it is compiled: a command that was broken off goes on where it was. Raises UserError for a
    chip whose clock is not known.
    """
    from mvader_jax.models.unet import UNetConfig
    from mvader_jax.parallel.pods import parse_topology
    from mvader_jax.plan import blocks
    from mvader_jax.plan.request import planned
    from mvader_jax.settings import to_dict

    topology, config = parse_topology(request.topology, request.slices), planned(request)
    stage, unet = config.stage(request.stage), config.model.require(UNetConfig)
    blocks.clocked(topology.generation)
    rows, rest = divmod(stage.batch_size, topology.devices * (request.accumulate or stage.accumulate))
    if rest or not rows:
        raise UserError(f"a batch of {stage.batch_size} does not divide over {topology.devices} devices")
    asked = {"config": to_dict(unet), "generation": topology.generation, "rows": rows}
    asked |= {"dtype": stage.dtype, "remat": stage.remat}
    counts = blocks.blocks(unet)
    found = []
    with status("starting", quiet or as_json, at_once=True) as say:
        for done, (block, count) in enumerate(counts.items(), 1):
            where = f"{done} of {len(counts)}, {block}"
            one = {"kind": block.kind, "level": block.level, "channels": block.channels}
            found.append((str(block), count, _ask("blocks", {**asked, "block": one}, "block", where, say)))
    if as_json:
        print(json.dumps([{"block": name, "count": count, **one} for name, count, one in found], indent=1))
    else:
        print(
            f"{config.name}: the UNet's blocks forward and backward, {rows} samples per chip, {topology.chip.name}:"
        )
        print(blocks.table(found, topology.generation))


def _ask(module: str, asked: dict[str, Any], key: str, where: str, say: Say) -> Any:
    """What a module of `plan` answers, in a process of its own. Raises UserError where it refuses."""
    from mvader_jax.plan import runner

    answer = runner.ask(f"mvader_jax.plan.{module}", json.dumps(asked), lambda text: say(f"{where}: {text}"))
    if "error" in answer:
        raise UserError(f"{where}: {answer['error']}")
    return answer[key]
