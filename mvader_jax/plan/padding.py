"""What running the decoder on images and captions at their own lengths saves against one padded length.

Both are compiled: the embedding of one step's prompts as the train step does it (image rows of 144 tokens
and caption rows of 77, `data/rows.py`), and the same rows all padded to the longer. `mvader plan CONFIG
--padding` prints it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.plan.request import Request
from mvader_jax.plan.topology import parse_topology, prepare_environment


def padding(request: Request, say: Any = lambda message: None) -> dict[str, Any]:
    """FLOPs of the decoder's part of a step, a chip each, at own lengths and padded; and of the whole step.

    Raises UserError for a config whose diffusion stage has no decoder.
    """
    prepare_environment()
    from mvader_jax.parallel.mesh import make_mesh, parse_mesh
    from mvader_jax.plan.compile import compile_program
    from mvader_jax.plan.program import embedding_program
    from mvader_jax.plan.request import counts
    from mvader_jax.plan.topology import devices
    from mvader_jax.train.config import load_config

    topology = parse_topology(request.topology, request.slices)
    config = load_config(request.config, request.overrides)
    stage = config.stage(request.objective)
    if stage.objective != "diffusion" or config.model.decoder is None:
        raise UserError("padding concerns the diffusion objective of a model with a decoder")
    stage = dataclasses.replace(stage, accumulate=request.accumulate or stage.accumulate)
    mesh = make_mesh(parse_mesh(request.mesh), devices(topology))
    found = {}
    for name, padded in (("own lengths", False), ("padded", True)):
        say(f"the decoder at {name}")
        program = embedding_program(config, stage, mesh, padded=padded)
        result = compile_program(program, topology, request.effort, say, request.cache)
        if "flops" not in result:
            raise UserError(f"the decoder does not fit on {topology.name} with the mesh {request.mesh}")
        found[name] = result["flops"] * mesh.size
    needs, _ = counts(request, config, stage)
    saved = found["padded"] - found["own lengths"]
    rows = [
        ("the decoder on every row at its own length", found["own lengths"], "compiled"),
        ("the decoder on every row padded to an image's length", found["padded"], "compiled"),
        ("saved a step", saved, "compiled"),
        ("the whole step's mathematics", needs, "counted"),
    ]
    lines = [f"{config.name} on {topology.name}, mesh {request.mesh}, a batch of {stage.batch_size}:"]
    lines += [f"  {label:<54}{value / 1e15:>10.3f} PFLOP  {kind}" for label, value, kind in rows]
    lines.append(
        f"  {saved / found['padded']:.1%} of the decoder's work, {saved / (needs + saved):.1%} of a padded step's"
    )
    return {
        "own_lengths": found["own lengths"],
        "padded": found["padded"],
        "saved": saved,
        "step": needs,
        "text": "\n".join(lines),
    }


def main() -> None:
    """Reads a request from standard input; writes the answer as its last line."""
    request = Request.from_json(sys.stdin.read())

    def say(message: str) -> None:
        print(f"progress: {message}", file=sys.stderr, flush=True)

    try:
        answer = padding(request, say)
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
