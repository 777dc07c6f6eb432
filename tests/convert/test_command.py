"""`mvader convert` and `export` as a new user meets them: every mistake is one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import twins
from converting import convert
from safetensors.torch import load_file, save_file
from test_read import Malicious

from mvader_jax.cli.main import main
from mvader_jax.storage.bundle import load_bundle
from mvader_jax.storage.bundle_config import read_config


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest source: CLIP's text tower in two shards."""
    model = twins.clip_text()
    folder = tmp_path_factory.mktemp("original") / "text"
    return twins.save_folder(folder, model.state_dict(), model.config.to_dict(), shards=2)


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    copy = tmp_path / "text"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


SHARD = "model-00001-of-00002.safetensors"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], reason: str, *arguments: object) -> None:
    """The command ends with code 2 and one sentence that says why."""
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mvader: ") and error.count("\n") == 1, error
    assert reason in error, error


def truncate(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) * 2 // 3])


def wrong_header(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(struct.pack("<Q", 50) + data[8:])


def missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def pointer(folder: Path) -> None:
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1710671599\n")


def not_a_number(folder: Path) -> None:
    state = load_file(folder / SHARD)
    state["encoder.layers.0.mlp.fc1.weight"][3, 2] = float("nan")
    save_file(state, folder / SHARD)


def strangers(folder: Path) -> None:
    state = load_file(folder / SHARD)
    for name in ("stranger.weight", "other.bias"):
        state[name] = torch.zeros(2)
    state["final_layer_norm.weight"] = torch.zeros(35)
    save_file(state, folder / SHARD)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(state, SHARD)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_settings(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, f"{SHARD} is truncated"),
        (wrong_header, f"{SHARD} has a wrong safetensors header"),
        (missing_shard, f"names 1 shards that are missing: {SHARD}"),
        (pointer, f"{SHARD} is a Git LFS pointer, not weights; fetch the real file"),
        (not_a_number, "holds NaN or infinite numbers; pass --allow-nan to take it"),
        (no_settings, "--config FILE.json with num_attention_heads"),
    ],
)
def test_damaged_sources(
    source: Path, tmp_path: Path, damage: object, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source)  # type: ignore[operator]
    refused(capsys, reason, "convert", source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_every_tensor_that_does_not_fit_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers(source)
    refused(capsys, "unexpected stranger.weight", "convert", source, tmp_path / "out")
    assert run("convert", source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "unexpected other.bias" in error
    assert "misshaped final_layer_norm.weight, [35] where [36] belongs" in error


def test_nan_on_purpose(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    not_a_number(source)
    assert run("convert", source, tmp_path / "out", "--allow-nan") == 0
    assert "not finite: encoder.layers.0.mlp.fc1.weight" in capsys.readouterr().out
    # The bundle says so for as long as it is there.
    assert run("bundle", tmp_path / "out", "--verify") == 0
    assert "  not finite: encoder.layers.0.mlp.fc1.weight\n" in capsys.readouterr().out
    tree = load_bundle(tmp_path / "out").components["text_encoder"]
    assert np.isnan(tree["layers"]["mlp"]["fc1"]["kernel"]).sum() == 1


def test_malicious_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touched, file = tmp_path / "touched", tmp_path / "sd-v1-4.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "callbacks": Malicious(touched)}, file)
    refused(capsys, "pass --trust-pickle", "convert", file, tmp_path / "out")
    refused(capsys, "could run its code", "convert", file, tmp_path / "out", "--as", "stable-diffusion")
    assert [path.name for path in tmp_path.iterdir()] == ["sd-v1-4.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent", "out"], "absent does not exist"),
        (["TEXT"], "Missing argument"),
        (["TEXT", "out", "--as", "bert"], "unknown kind 'bert'; accepted: stable-diffusion, gptj"),
        (["TEXT", "out", "--as", "gptj"], "so their dimensions cannot be told"),
        (["TEXT", "out", "--dtype", "int4"], "unknown dtype 'int4'; accepted: keep, float32, bfloat16"),
        (
            ["TEXT", "out", "--variant", "fp16"],
            "has no weights of variant 'fp16'; leave out --variant",
        ),
        (["TEXT", "out", "--config", "absent.json"], "cannot read absent.json"),
        (["TEXT", "out", "--base", "TEXT"], "--base belongs to finetunes of biases alone"),
        (["TEXT", "out", "--tokenizer", "TEXT"], "has no tokenizer"),
        (["TEXT", "empty"], "exists already; choose another place or pass --overwrite"),
        (["TEXT", "TEXT"], "is the source"),
        (["TEXT", "TEXT", "--overwrite"], "is the source"),
        (["TEXT", "/proc/nowhere/out"], "cannot write"),
        (["EMPTY", "out"], "holds no weights that are known by their name"),
    ],
)
def test_mistakes(
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"TEXT": str(original), "EMPTY": "empty"}
    before = {file: file.read_bytes() for file in original.iterdir()}
    refused(capsys, reason, "convert", *(places.get(argument, argument) for argument in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert {file: file.read_bytes() for file in original.iterdir()} == before


def test_what_is_said_of_a_good_source(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert run("convert", original, out, "--dtype", "bfloat16") == 0
    lines = capsys.readouterr().out.splitlines()
    record = read_config(out)["components"]["text_encoder"]
    assert lines == [
        f"{original} is clip-text",
        f"  text_encoder: {record['parameters']:,} parameters, bfloat16",
        f"wrote {out}",
    ]
    assert record["kind"] == "clip-text" and record["source"] == "text" and len(record["files"]) == 2
    refused(capsys, "unknown format 'onnx'", "export", out, tmp_path / "x", "--to", "onnx")
    refused(capsys, "no bundle", "export", tmp_path / "none", tmp_path / "x", "--to", "diffusers")
    assert run("export", out, tmp_path / "x", "--to", "diffusers") == 0
    assert f"wrote text_encoder to {tmp_path / 'x'}" in capsys.readouterr().out


def test_overwriting_is_all_or_nothing(
    original: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    convert(original, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    not_a_number(source)
    refused(capsys, "exists already", "convert", original, out)
    # A failure in the middle, and an interruption, leave what stood there.
    refused(capsys, "holds NaN", "convert", source, out, "--overwrite")

    def interrupt(done: int, total: int) -> None:
        assert 0 < done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(original, out, overwrite=True, progress=interrupt)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert run("convert", original, out, "--overwrite", "--dtype", "bfloat16") == 0
    assert read_config(out)["components"]["text_encoder"]["dtypes"] == ["bfloat16"]
    # What is not ours is left alone.
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    refused(
        capsys, "holds no bundle that mvader wrote", "convert", original, tmp_path / "thesis", "--overwrite"
    )
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"
    # Nor another's model, the source or what holds it; a link stays one.
    kept = {file: file.read_bytes() for file in (*original.rglob("*"), *source.rglob("*")) if file.is_file()}
    refused(capsys, "holds no bundle that mvader wrote", "convert", original, source, "--overwrite")
    refused(capsys, "holds the source", "convert", original, original.parent, "--overwrite")
    assert {file: file.read_bytes() for file in kept} == kept
    (tmp_path / "link").symlink_to("out")
    assert run("convert", original, tmp_path / "link", "--overwrite") == 0
    assert (tmp_path / "link").is_symlink()
    assert read_config(out)["components"]["text_encoder"]["dtypes"] == ["float32"]
    (tmp_path / "link").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text", "thesis"]


def test_there_is_no_moment_without_a_bundle(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one and the new one change places in one step; only without that, in two."""
    out = tmp_path / "out"
    convert(original, out)
    with monkeypatch.context() as patched:
        # One rename alone can only be to a free place.
        replace = os.replace
        patched.setattr(
            os, "replace", lambda a, b: replace(a, b) if a.is_file() else pytest.fail("a directory")
        )
        convert(original, out, overwrite=True, dtype="bfloat16")
    assert read_config(out)["components"]["text_encoder"]["dtypes"] == ["bfloat16"]
    monkeypatch.setattr("mvader_jax.storage.atomic._exchanged", lambda a, b: False)
    convert(original, out, overwrite=True)
    assert read_config(out)["components"]["text_encoder"]["dtypes"] == ["float32"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_progress_ends_at_the_bytes_written(original: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convert(original, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    total = 4 * report.components["text_encoder"]["parameters"]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and {t for _, t in seen} == {total}


#: Run in a mount namespace of its own, so that a small disk can be had without being root.
ON_A_SMALL_DISK = """
import collections, os, shutil, signal, subprocess, sys
from pathlib import Path
disk, source, elsewhere = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
from mvader_jax.cli.main import main

def run(*arguments):
    try:
        main([str(a) for a in arguments])
    except SystemExit as stopped:
        print(stopped.code, os.listdir(disk), file=sys.stderr)

run("convert", source, disk / "out")
# Another program takes the room after it was looked at.
Usage = collections.namedtuple("Usage", "total used free")
shutil.disk_usage = lambda place: Usage(10**9, 0, 10**9)
run("convert", source, disk / "out")

from mvader_jax.convert.convert import convert
from mvader_jax.convert.sources import Options, open_source
convert(
    open_source(source, None, Options()), source, elsewhere,
    progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL),
)
"""


def test_full_disk_and_a_killed_run(original: Path, tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, disk, original, out],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("mvader: ") or line[:2] == "2 "]
    assert len(lines) == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "GB, but its disk has 0.00 GB left" in lines[0] and lines[1] == "2 []"
    assert f"cannot write '{disk / 'out'}': no space is left on its disk" in lines[2] and lines[3] == "2 []"
    # A run that was killed leaves no bundle; the next one removes what it left and starts clean.
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = tmp_path.glob(".out.*")
    convert(original, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    assert not left.exists()
