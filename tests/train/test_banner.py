"""What a run says before it begins, and what one says that is over."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import jax
import micro
import pytest

from mvader_jax.cli.main import main
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train import loop
from mvader_jax.train.banner import banner
from mvader_jax.train.finished import finished
from mvader_jax.train.job import begin
from mvader_jax.train.show import as_python


def bytes_of(tree: object) -> int:
    """On one device, as the arrays really lie."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("axes", [MeshConfig(data=1), MeshConfig(fsdp=4, data=2)], ids=["one", "eight"])
def test_a_run_says_what_it_is(axes: MeshConfig, tmp_path: Path) -> None:
    start = micro.bundle(micro.NANO, "decoder", "image_encoder", "image_prefix")
    save_bundle(tmp_path / "start", start)
    config = micro.nano_config(steps=16, frozen_dtype="bfloat16")
    stage = dataclasses.replace(config.stages["captioning"], init=(str(tmp_path / "start"),))
    config = dataclasses.replace(config, stages={"captioning": stage})
    devices = jax.devices()[: axes.fsdp * axes.data]
    job = begin(config, "captioning", tmp_path / "run", make_mesh(axes, devices))
    said = dict(line.split(maxsplit=1) for line in banner(job))
    where = "mesh data=1" if axes.fsdp == 1 else "mesh data=2,fsdp=4"
    assert said["devices"] == f"{len(devices)} x cpu, {where}"
    assert said["objective"] == f"captioning, from {tmp_path / 'start'}; made anew: adapters"
    assert said["records"] == "64 (scenes), each read 2 times"
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in start.components.items()
    }
    trained = sum(leaf.size for leaf in jax.tree.leaves(job.state.trainable))
    assert trained > sizes["image_prefix"]
    group = "adapters: {:,} parameters ((adapters|image_prefix)/.*) at 0.001"
    assert said["trains"] == group.format(trained)
    frozen = sizes["decoder"] + sizes["image_encoder"]
    parts = f"decoder {sizes['decoder']:,}, image_encoder {sizes['image_encoder']:,}"
    assert said["frozen"] == f"{frozen:,} parameters in bfloat16 ({parts})"
    assert said["steps"] == "16, batches of 8; 2 of warm-up, then a constant rate"
    state = job.state
    whole = bytes_of((state.trainable, state.frozen, state.opt_state, state.ema, state.trainable))
    number, unit = said["memory"].split()[:2]
    assert float(number) * {"KiB": 2**10, "MiB": 2**20}[unit] == pytest.approx(whole, rel=0.05)
    assert "an estimate from shapes" in said["memory"]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["train", "mine.py", "--stage", "language", "--mesh", "data=8", *words])
    return done.value.code if isinstance(done.value.code, int) else 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and its finished run of two steps."""
    folder = tmp_path_factory.mktemp("banner")
    save_bundle(folder / "start", micro.bundle(micro.NANO, "decoder"))
    config = micro.language_config("start", steps=2, batch_size=8, save_every=1)
    (folder / "mine.py").write_text(as_python(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("--quiet") == 0
    return folder


def test_a_run_that_is_over_says_so_at_once(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("it was begun"))
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("devices were opened"))
    began = time.process_time()
    assert run() == 0
    # A third of a second where nothing else runs; loading and compiling take many.
    assert time.process_time() - began < 3
    assert capsys.readouterr().err == "finished: runs/nano/language/bundle is the result of all 2 steps\n"
    assert run("--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("stages.language.groups.decoder.learning_rate=0.5", "stages.language.seed=3") == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "since it was trained stage.groups.decoder.learning_rate changed from 0.001 to 0.5",
        "since it was trained stage.seed changed from 0 to 3",
        "to train with that, name another --workdir, or more steps",
    ]


def test_a_run_with_work_left_is_not_over(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    from mvader_jax.train.config import load_config

    config = load_config("mine.py")
    assert finished(config, "language", "runs/nano")
    assert not finished(load_config("mine.py", ["stages.language.steps=3"]), "language", "runs/nano")
    assert not finished(config, "language", "runs/other")
    bundle = Path("runs/nano/language/bundle")
    # The bundle of an earlier run in this place, whose steps were deleted.
    info = bundle.joinpath("config.json").stat()
    os.utime(bundle / "config.json", (0, 0))
    assert not finished(config, "language", "runs/nano")
    os.utime(bundle / "config.json", (info.st_atime, info.st_mtime))
    assert finished(config, "language", "runs/nano")
    # No whole bundle: what is missing is written when the run is gone on with.
    bundle.joinpath("config.json").rename(bundle / "away")
    assert not finished(config, "language", "runs/nano")
    bundle.joinpath("away").rename(bundle / "config.json")


def test_quiet_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    monkeypatch.chdir(trained)
    more = "stages.language.steps=3"
    assert run(more, "--workdir", "runs/nano", "--quiet") == 0
    assert "devices" not in capsys.readouterr().err
    assert run("stages.language.steps=4") == 0
    said = capsys.readouterr().err
    assert said.startswith("going on from step 3 of 4\n")
    assert "steps     4, 3 of them done, batches of 8; 2 of warm-up" in said
    assert "devices   8 x cpu, mesh data=8\n" in said and "frozen    nothing\n" in said
