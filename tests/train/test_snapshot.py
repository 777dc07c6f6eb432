"""A model out of any checkpoint of a run: the average or the parameters themselves, the run left as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import micro
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.storage.bundle_config import is_run, read_config
from mvader_jax.train.loop import train
from mvader_jax.train.snapshot import Snapshot, load_snapshot, steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that has ended, with three of its steps kept."""
    folder = tmp_path_factory.mktemp("run")
    save_bundle(folder / "init", micro.bundle(micro.NANO))
    config = micro.language_config(str(folder / "init"), steps=3, save_every=1, keep=3)
    assert train(config, "language", folder, make_mesh(MeshConfig(), jax.devices()[:1]), quiet=True) == 0
    return folder / "language"


def flat(components: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(components, sep="/").items()}


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_the_last_step_is_the_finished_bundle(run: Path, tmp_path: Path) -> None:
    before = listing(run)
    assert steps(run) == [1, 2, 3]
    assert command("bundle", tmp_path / "out", "--checkpoint", run) == 0
    assert listing(run) == before
    ours, finished = load_bundle(tmp_path / "out"), load_bundle(run / "bundle")
    mine, theirs = flat(ours.components), flat(finished.components)
    assert mine.keys() == theirs.keys() and {path.split("/")[0] for path in mine} >= {
        "decoder",
        "unet",
        "vae",
    }
    assert all(mine[path].tobytes() == theirs[path].tobytes() for path in mine)
    assert (ours.model, ours.records) == (finished.model, finished.records)
    assert ours.tokenizer is not None


def test_earlier_steps_and_what_is_not_averaged(run: Path, tmp_path: Path) -> None:
    first = load_snapshot(Snapshot.of(f"{run}@1"))
    assert first.records["decoder"]["trained"]["steps"] == 1
    raw = load_snapshot(Snapshot.of(run, raw=True))
    average, last = flat(first.components), flat(raw.components)
    finished = flat(load_bundle(run / "bundle").components)
    moved = [path for path in finished if not np.array_equal(finished[path], last[path])]
    assert moved and all(path.startswith("decoder/") for path in moved)
    assert any(not np.array_equal(average[path], finished[path]) for path in moved)

    assert command("bundle", tmp_path / "raw", "--checkpoint", f"{run}@3", "--raw") == 0
    written = flat(load_bundle(tmp_path / "raw").components)
    assert all(np.array_equal(written[path], last[path]) for path in last)


def test_pictures_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--steps", "1", "--num-images", "1", "--quiet", "--out"]
    for number, bundle in enumerate([f"{run}@3", run / "bundle", f"{run}@1"]):
        assert command("sample", "a red circle", "--bundle", bundle, *common, tmp_path / str(number)) == 0
    pictures = [next((tmp_path / str(number)).glob("*.png")) for number in range(3)]
    assert pixels(pictures[0]) == pixels(pictures[1])
    assert command("sample", "a", "--bundle", "tiny", "--raw", "--out", tmp_path) == 2
    assert "--raw belongs to RUN/STAGE" in capsys.readouterr().err


def test_a_pipeline_is_of_a_step(run: Path) -> None:
    """`Pipeline.load` takes the names of `--bundle`."""
    for name, raw in ((run, False), (f"{run}@1", False), (str(run), True)):
        expected = flat(load_snapshot(Snapshot.of(name, raw=raw)).components)
        loaded = flat(Pipeline.load(name, raw=raw).bundle.components)
        assert all(loaded[path].tobytes() == expected[path].tobytes() for path in expected)
    with pytest.raises(UserError, match="has no checkpoint of step 7"):
        Pipeline.load(f"{run}@7")


def pixels(path: Path) -> bytes:
    import PIL.Image

    return PIL.Image.open(path).tobytes()


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_run(run) and is_run(f"{run}@7") and not is_run(run / "bundle")
    with pytest.raises(UserError, match="has no checkpoint of step 7; it has 1, 2, 3"):
        Snapshot.of(f"{run}@7")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="is no stage of a run with a checkpoint"):
        Snapshot.of(tmp_path / "empty")

    copy = tmp_path / "copy" / "language"
    shutil.copytree(run, copy)
    manifest = next((copy / "checkpoints" / "2" / "state").rglob("manifest.ocdbt"))
    manifest.write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load_snapshot(Snapshot.of(f"{copy}@2"))

    # The bundle that the run started from is another by now.
    metadata = next((copy / "checkpoints" / "3" / "metadata").rglob("metadata"))
    data = json.loads(metadata.read_text())
    data["start"]["decoder"] = "0" * 64
    metadata.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"the decoder that .* started from was replaced by another since"):
        load_snapshot(Snapshot.of(f"{copy}@3"))

    for options in (("--decoder", run / "bundle"), ("--describe",), ("--seed", 3)):
        assert command("bundle", tmp_path / "x", "--checkpoint", run, *options) == 2
        assert "does nothing for --checkpoint" in capsys.readouterr().err
    assert command("bundle", tmp_path / "x", "--raw", "--vae", run / "bundle") == 2
    assert "--raw does nothing for components put together" in capsys.readouterr().err
    assert read_config(run / "bundle") and not (tmp_path / "x").exists()
