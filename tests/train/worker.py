"""One process of a job on loopback: trains a stage of the micro config. Run by the tests, not collected.

python worker.py WORKDIR STAGE MESH OPTIONS, OPTIONS a JSON object:
    init: the bundle to start from; changes: settings of the stage; sigterm_at: [process, step], where that process sends
    itself SIGTERM; sigkill_at: likewise, when a checkpoint is there;
    lora: the stage trains these factors in place of weights;
    rows: file to which the checksums of this process's rows of the first batches are written;
    bundle: load this bundle's decoder instead of training, and print what that took of memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax


def main() -> int:
    from mvader_jax.parallel.mesh import make_mesh, parse_mesh
    from mvader_jax.parallel.processes import initialize_distributed

    workdir, stage, shape, options = Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    initialize_distributed()
    mesh = make_mesh(parse_mesh(shape))
    if "bundle" in options:
        return load(options["bundle"], mesh)

    import micro

    from mvader_jax.train.config import Group
    from mvader_jax.train.loop import train

    config = micro.language_config(options["init"], **options["changes"])
    if "lora" in options:
        factors = {"lora": options["lora"], "groups": {"lora": Group("lora/.*", 1e-2)}}
        chosen = dataclasses.replace(config.stage(stage), **factors)
        config = dataclasses.replace(config, stages={stage: chosen})
    if "rows" in options:
        write_rows(config, stage, mesh, options["init"], f"{options['rows']}.{jax.process_index()}")

    def on_step(number: int) -> None:
        if options.get("sigterm_at") == [jax.process_index(), number]:
            os.kill(os.getpid(), signal.SIGTERM)
        if options.get("sigkill_at") == [jax.process_index(), number]:
            while not any(path.name.isdigit() for path in (workdir / stage / "checkpoints").glob("*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if "sigterm_at" in options:
            # Long enough for the notice to reach the others before the run is over.
            time.sleep(0.25)

    return train(config, stage, workdir, mesh, quiet=False, on_step=on_step)


def write_rows(config: Any, stage: str, mesh: Any, init: str, path: str) -> None:
    """Checksums of the captions that this process makes of three batches."""
    from mvader_jax.parallel.mesh import process_share
    from mvader_jax.storage.bundle import load_bundle
    from mvader_jax.train.run import stage_loader

    index, count = process_share(mesh)
    chosen = config.stage(stage)
    loader = stage_loader(
        load_bundle(init, components=[]),
        chosen,
        process=(index, count),
        groups=chosen.row_groups,
        split="train",
    )
    rows = [[zlib.crc32(row.tobytes()) for row in next(loader)["prompt"].token_ids] for _ in range(3)]
    Path(path).write_text(json.dumps({"share": [index, count], "rows": rows}))


def load(bundle: str, mesh: Any) -> int:
    from mvader_jax.parallel.processes import barrier
    from mvader_jax.storage.bundle import load_bundle

    def memory(name: str) -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) << 10

    barrier()
    before = memory("VmRSS")
    tree = load_bundle(bundle, components=["decoder"], mesh=mesh).components["decoder"]
    jax.block_until_ready(tree)
    barrier()
    leaves = jax.tree.leaves(tree)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    print(
        json.dumps(
            {
                "whole": sum(leaf.nbytes for leaf in leaves),
                "held": held,
                "peak": memory("VmHWM") - before,
                "after": memory("VmRSS") - before,
            }
        )
    )
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
