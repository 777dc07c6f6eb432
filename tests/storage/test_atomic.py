"""Whole or not at all: two writers at once, killed ones, symlinks, full disks, and what is never replaced."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, make_directory, sweep, whole_directory, whole_file, write_file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_file(file, "ü")
    file.chmod(0o640)

    def interrupted() -> None:
        with whole_file(file) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_bytes() == "ü".encode()
    write_file(file, b"new")
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with whole_file(file) as first, whole_file(file) as second:
        first.write_text("first")
        second.write_text("second")
        sweep(tmp_path)
        assert len(names(tmp_path)) == 2
    assert file.read_text() == "first" and names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_directory_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with whole_directory(out) as first:
            (first / "a").write_text("first")
            with (
                pytest.raises(UserError, match=r"needs 1000000\.00 GB, but its disk has"),
                whole_directory(out, needed=10**15),
            ):
                pass
            with whole_directory(out) as second:
                (second / "a").write_text("second")
            assert (first / "a").exists()

    # The one that is done first is not replaced.
    with pytest.raises(UserError, match="exists already"):
        late()
    assert (out / "a").read_text() == "second" and names(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mvader_jax.storage.atomic import whole_directory, whole_file
with whole_file(Path(sys.argv[1]) / "a.txt") as a, whole_directory(Path(sys.argv[1]) / "out") as out:
    a.write_text("half")
    (out / "half").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL and len(names(tmp_path)) == 2
    (tmp_path / ".mine.partial").write_text("a user's")
    with whole_directory(tmp_path / "out"), whole_file(tmp_path / "b.txt"):
        sweep(tmp_path)
    assert names(tmp_path) == [".mine.partial", "b.txt", "out"]


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere / "bundle")
    (tmp_path / "a.json").symlink_to(elsewhere / "real.json")
    for text in ("one", "two"):
        with whole_directory(tmp_path / "out", overwrite=True) as work:
            (work / "text").write_text(text)
        write_file(tmp_path / "a.json", text)
    assert (tmp_path / "out").is_symlink() and (elsewhere / "bundle" / "text").read_text() == "two"
    assert (tmp_path / "a.json").is_symlink() and (elsewhere / "real.json").read_text() == "two"
    assert names(elsewhere) == ["bundle", "real.json"] and names(tmp_path) == ["a.json", "disk", "out"]


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    write_file(pipe, "through")
    assert reader.communicate(timeout=20)[0] == b"through" and names(tmp_path) == ["pipe"]


def test_a_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "project" / "weights" / "sd"
    source.mkdir(parents=True)
    (source / "model").write_text("mine")
    (tmp_path / "link").symlink_to(source)
    cases = {
        source: "is the source",
        tmp_path / "link": "is the source",
        source.parent: "holds the source",
        tmp_path / "project": "holds the source",
    }
    for out, reason in cases.items():
        with (
            pytest.raises(UserError, match=f"{reason} .*; choose another place"),
            whole_directory(out, overwrite=True, sources=[source]),
        ):
            raise AssertionError
    (source / "part").mkdir()
    with (
        pytest.raises(UserError, match="is a part of the source"),
        whole_directory(source / "part", overwrite=True, sources=[source]),
    ):
        raise AssertionError
    assert (source / "model").read_text() == "mine"
    # A new place inside of the source takes nothing away.
    with whole_directory(source / "new", overwrite=True, sources=[source]) as work:
        (work / "a").write_text("a")
    assert names(source) == ["model", "new", "part"]


def test_what_is_not_ours_is_said_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(UserError, match="out is not replaced: it holds a thesis; remove it or choose"),
        whole_directory(tmp_path / "out", overwrite=True, not_ours=lambda path: "it holds a thesis"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    "url", ["gs://b/x", "s3://b/x", "memory://x", "hdfs://x/y", "file:///tmp/x", "gs:/b/x"]
)
def test_urls_are_no_paths(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not on this machine's file system: mount"):
        local(url)
    uses: list[Callable[[], object]] = [
        lambda: make_directory(url),
        lambda: write_file(Path(url), ""),
        lambda: whole_directory(url).__enter__(),
    ]
    for use in uses:
        with pytest.raises(UserError, match="is not on this machine's file system"):
            use()
    assert names(tmp_path) == []
    with pytest.raises(UserError, match="is an address of the hub: write to a folder, and publish it"):
        whole_directory("hf:me/model").__enter__()
    with pytest.raises(UserError, match=r"^'gs://b/x' is not"):  # as it was written, whatever Path made of it
        local(Path("gs://b/x"))
    assert local("a:b/c") == Path("a:b/c") and local("./gs:/b") == Path("gs:/b")


#: In a mount namespace of its own, so that a small disk can be had without being root.
ON_A_SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
import numpy as np
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
from mvader_jax.data.building.shard_writer import ShardWriter
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.storage.atomic import whole_directory, write_file
from mvader_jax.storage.checkpoint import save_tree

def shard():
    record = dict(id="a", image=bytes(200_000), captions=["a"], url="", license="", width=1, height=1,
                  aesthetic=0.0, nsfw=0.0, watermark=0.0)
    with ShardWriter(disk / "shard") as writer:
        from mvader_jax.data.building.schema import features
        writer.write({name: record[name] for name in features()})

def tree():
    with whole_directory(disk / "bundle") as work:
        save_tree(work / "unet", {"a": np.random.default_rng(0).normal(size=100_000)})

noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
said = []
for write in (lambda: write_file(disk / "file", bytes(200_000)), lambda: save_png(disk / "png", noise), shard, tree):
    try:
        write()
    except UserError as error:
        said.append(str(error))
    said.append([path.name for path in disk.iterdir()])
print(json.dumps(said))
"""


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    expected = []
    for name in ("file", "png", "shard", "bundle"):
        expected += [f"cannot write '{tmp_path / name}': no space is left on its disk", []]
    assert said == expected


def test_places_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path / "none" / "a", "No such file"),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (Path("/proc/a"), ""),
    ):
        with pytest.raises(UserError, match=f"cannot write '.*': .*{reason}"):
            write_file(path, "x")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "a" / "b", Path("/proc/x/a")):
        with pytest.raises(UserError, match="cannot write"), whole_directory(path):
            raise AssertionError
        with pytest.raises(UserError, match="cannot write"):
            make_directory(path)
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"


def test_names_of_any_length_have_temporary_ones(tmp_path: Path) -> None:
    write_file(tmp_path / ("ü" * 120), "x")
    with whole_directory(tmp_path / ("n" * 255)):
        pass
    assert len(names(tmp_path)) == 2
