"""Directories of results: nothing that a user keeps there is replaced, whoever writes at the same time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata
from mvader_jax.sampling import output
from mvader_jax.sampling.manifest import MANIFEST, add_rows, drop_rows, read_rows
from mvader_jax.sampling.output import write_pictures
from mvader_jax.storage import atomic


def plain(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def write(out: Path, word: str, count: int = 4) -> list[str]:
    paths = write_pictures(out, {i: plain(i) for i in range(count)}, {"prompt": [word]})
    return [path.name for path in paths]


def said(path: Path) -> str:
    return json.loads(read_png_metadata(path)["prompt"])[0]


def test_kept_pictures_are_never_replaced(tmp_path: Path) -> None:
    assert write(tmp_path, "a cat") == [*(f"{i:05d}.png" for i in range(4)), "grid-00000.png"]
    (tmp_path / "00000.png").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert write(tmp_path, "a dog") == [*(f"{i:05d}.png" for i in range(4, 8)), "grid-00004.png"]
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    # Nor is the number of a picture that is gone, which has a row, given again.
    for path in tmp_path.glob("0*.png"):
        path.unlink()
    assert write(tmp_path, "a hen")[0] == "00008.png"
    files = [row["file"] for row in read_rows(tmp_path)]
    assert len(set(files)) == len(files) == 12


@pytest.mark.parametrize("name", ["00003.png", "00003.jpg", "grid-00003.png"])
def test_numbers_go_on_from_whatever_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert write(tmp_path, "a cat", 2) == ["00004.png", "00005.png", "grid-00004.png"]
    assert (tmp_path / name).read_text() == "mine"


def test_a_name_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_next_number", lambda out: 0)
    (tmp_path / "00001.png").symlink_to("nowhere")
    assert write(tmp_path, "a cat", 2) == ["00000.png", "00002.png", "grid-00000.png"]
    assert os.readlink(tmp_path / "00001.png") == "nowhere" and not (tmp_path / "nowhere").exists()
    # Also where a file system has no hard links.
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    assert write(tmp_path, "a dog", 1) == ["00003.png", "grid-00001.png"]
    assert said(tmp_path / "00003.png") == "a dog" and not list(tmp_path.glob(".*"))


def _writer(barrier: Any, out: Path, word: str) -> None:
    barrier.wait()
    write(out, word)


def test_runs_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        out, barrier = tmp_path / str(attempt), context.Barrier(3)
        words = ["a cat", "a dog", "a hen"]
        processes = [context.Process(target=_writer, args=(barrier, out, word)) for word in words]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        rows = list(read_rows(out))
        assert len(rows) == 12 == len({row["file"] for row in rows}) == len(list(out.glob("0*.png")))
        for word in words:
            assert sum(said(out / row["file"]) == word == row["prompt"][0] for row in rows) == 4
        assert not list(out.glob(".*.partial"))


def test_a_full_disk_is_one_sentence_and_keeps_what_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = atomic._place_new, [2]

    def full(partial: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(partial, target)

    monkeypatch.setattr(atomic, "_place_new", full)
    with pytest.raises(UserError, match="no space is left"):
        write(tmp_path, "a cat")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00000.png", "00001.png", MANIFEST]
    assert [row["file"] for row in read_rows(tmp_path)] == names[:2]


def test_a_manifest_keeps_every_line_that_is_not_a_stale_row(tmp_path: Path) -> None:
    mine = b'{"audio": "a.wav"}\nnot JSON\n{"file": "a.png"}\n{"file": "b.png", "n": 1}\n'
    (tmp_path / MANIFEST).write_bytes(mine + b'{"file": "c.png", "trunc')
    drop_rows(tmp_path, lambda row: row["file"] == "a.png")
    kept = b'{"audio": "a.wav"}\nnot JSON\n{"file": "b.png", "n": 1}\n'
    assert (tmp_path / MANIFEST).read_bytes() == kept
    # A row that was cut off does not swallow the next.
    (tmp_path / MANIFEST).write_bytes(kept + b'{"file": "c')
    add_rows(tmp_path, [{"file": "caf\udce9.png"}])
    assert [row["file"] for row in read_rows(tmp_path)] == ["b.png", "caf\udce9.png"]
    assert (tmp_path / MANIFEST).read_bytes().endswith(b'{"file": "caf\\udce9.png"}\n')
