"""Several real processes on loopback: one run of four, stopped, gone on with by two."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jobs import run_job

from mvader_jax.models.components import COMPONENTS
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.train.loop import PREEMPTED, train
from mvader_jax.train.run import stage_loader

CHANGES: dict[str, Any] = {"steps": 24, "save_every": 4, "log_every": 1, "row_groups": 4, "keep": 20}


def final(workdir: Path) -> dict[str, np.ndarray]:
    bundle = load_bundle(workdir / "language" / "bundle")
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(bundle.components, sep="/").items()}


def logged(workdir: Path) -> dict[int, float]:
    lines = (workdir / "language" / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}


def rows(path: Path, processes: int) -> list[list[int]]:
    """Checksums by batch, the processes' rows in order."""
    parts = [json.loads(Path(f"{path}.{index}").read_text()) for index in range(processes)]
    assert [part["share"] for part in parts] == [[index, processes] for index in range(processes)]
    return [[row for part in parts for row in part["rows"][batch]] for batch in range(3)]


@pytest.mark.slow
def test_four_processes_stop_together_and_two_go_on(tmp_path: Path) -> None:
    alone, job, init = tmp_path / "alone", tmp_path / "job", str(tmp_path / "init")
    save_bundle(init, micro.bundle(micro.NANO, "decoder"))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    assert train(micro.language_config(init, **CHANGES), "language", alone, mesh, quiet=True) == 0

    # The notice reaches the third process alone; all four save the same step and say so.
    options = {"init": init, "changes": CHANGES, "sigterm_at": [2, 6], "rows": str(tmp_path / "rows4")}
    ends = run_job(4, 1, [str(job), "language", "data=2,fsdp=2"], options)
    assert [code for code, _, _ in ends] == [PREEMPTED] * 4, ends[0][2][-3000:]
    steps = sorted(int(p.name) for p in (job / "language" / "checkpoints").iterdir() if p.name.isdigit())
    stopped = steps[-1]
    assert 6 <= stopped < 24 and steps[0] == 4
    assert f"told to stop: step {stopped} is saved" in ends[0][2]
    # Process 0 alone talks and writes.
    assert not any("told to stop" in error for _, _, error in ends[1:])

    # The newest step is damaged, in a file that one process reads: both fall back to the one before.
    for part in (job / "language" / "checkpoints" / str(stopped) / "state").glob("ocdbt.process_3/d/*"):
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    options = {"init": init, "changes": CHANGES, "rows": str(tmp_path / "rows2")}
    ends = run_job(2, 2, [str(job), "language", "data=2,fsdp=2"], options)
    assert [code for code, _, _ in ends] == [0] * 2, ends[0][2][-3000:]
    assert f"the checkpoint of step {stopped} is damaged, going back to the one before" in ends[0][2]
    assert f"going on from step {steps[-2]} of 24" in ends[0][2]
    assert (job / "language" / f"damaged-{stopped}").is_dir()

    # Every row of a batch is made by one process, and they are the rows of the run of a single one.
    four, two = rows(tmp_path / "rows4", 4), rows(tmp_path / "rows2", 2)
    stage = micro.language_config(init, **CHANGES).stages["language"]
    loader = stage_loader(load_bundle(init, components=[]), stage, groups=4, split="train")
    whole = [[zlib.crc32(row.tobytes()) for row in next(loader)["prompt"].token_ids] for _ in range(3)]
    assert four == two == whole

    # Sums over processes are added in another order than over one's own devices; nothing more differs.
    expected, found = logged(alone), logged(job)
    assert set(found) == set(expected)
    for step, loss in expected.items():
        np.testing.assert_allclose(found[step], loss, rtol=1e-4, err_msg=str(step))
    one, other = final(alone), final(job)
    for path, value in one.items():
        np.testing.assert_allclose(other[path], value, rtol=0, atol=2e-4, err_msg=path)


@pytest.mark.slow
def test_no_process_holds_the_decoder_whole_while_loading(tmp_path: Path) -> None:
    """A decoder of 2 GB over two processes: each comes to hold half. On the way it needs its largest shard
    (0.3 GB here) twice, as read and as decoded, and never a whole copy."""
    from mvader_jax.models.components import abstract_components
    from mvader_jax.models.config import ModelConfig
    from mvader_jax.storage.bundle_config import write_config
    from mvader_jax.storage.checkpoint import save_tree

    assert COMPONENTS["decoder"] == "decoder"
    config = DecoderConfig(8192, 8192, 2048, 9, 16, 128, 8192, 256, rotary_dim=64)
    model = ModelConfig(decoder=config)
    shapes, _ = abstract_components(model, ["decoder"])
    noise = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    tree = jax.tree.map(lambda leaf: np.resize(noise, leaf.shape), shapes["decoder"])
    save_tree(tmp_path / "decoder", tree)
    write_config(tmp_path, model, {"decoder": {}})
    del tree
    ends = run_job(2, 1, [str(tmp_path), "-", "fsdp=2"], {"bundle": str(tmp_path)})
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2][-3000:]
    for _, out, _ in ends:
        taken = json.loads(out.splitlines()[-1])
        print(taken)
        assert taken["whole"] > 1.9e9
        assert taken["held"] < 0.51 * taken["whole"]
        assert taken["peak"] < 0.85 * taken["whole"]
