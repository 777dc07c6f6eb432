"""Which files of a directory a file of prompts may replace: those that it made, and no other."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.batch.store import Store
from mvader_jax.sampling.manifest import MANIFEST, read_rows
from mvader_jax.storage import atomic
from mvader_jax.storage.atomic import TakenError, write_file

MADE_BY = {"bundle": "b", "weights": "w"}


def run(prompts: Path, lines: list[dict[str, Any]], out: Path, shade: int = 9) -> list[str]:
    """What a run of a file of prompts does to a directory, with a plain picture for every one it draws."""
    prompts.parent.mkdir(parents=True, exist_ok=True)
    write_file(prompts, "".join(json.dumps(line) + "\n" for line in lines))
    requests, problems = read_requests(prompts)
    assert not problems
    store = Store(out, MADE_BY)
    done, replaced = store.open(requests)
    store.adopt(replaced)
    drawn = []
    for request in requests:
        for index in range(request.count):
            if request.file(index) not in done:
                row = store.row(request, index)
                if store.save(np.full((8, 8, 3), shade, np.uint8), row):
                    store.record([row])
                    drawn.append(request.file(index))
    store.close()
    return drawn


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


HOLIDAY = [{"id": "holiday", "prompt": "a red circle"}]


@pytest.mark.parametrize("kind", ["png", "jpg", "text", "link", "dangling", "folder"])
def test_a_users_file_is_refused_before_anything_is_drawn(tmp_path: Path, kind: str) -> None:
    out, target = tmp_path / "o", tmp_path / "o/holiday-000.png"
    out.mkdir()
    photo = PIL.Image.fromarray(render(scene_at(0, 1)))
    if kind in ("png", "jpg"):
        photo.save(target, format={"png": "PNG", "jpg": "JPEG"}[kind])
    elif kind == "text":
        target.write_text("mine, " * 99)
    elif kind == "folder":
        target.mkdir()
    else:
        photo.save(tmp_path / "photo.png")
        target.symlink_to(tmp_path / ("photo.png" if kind == "link" else "nowhere.png"))
    before = files(out), files(tmp_path)
    with pytest.raises(
        UserError, match=r"holiday-000.png' exists already and is no picture of these prompts"
    ):
        run(tmp_path / "p.jsonl", [{"id": "other", "prompt": "x"}, *HOLIDAY], out)
    (tmp_path / "p.jsonl").unlink()
    assert (files(out), files(tmp_path)) == before


def test_a_second_file_of_prompts_does_not_replace_the_firsts_pictures(tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert run(tmp_path / "one.jsonl", [{"prompt": "a cat"}], out) == ["000001-000.png"]
    before = files(out)
    for second in (tmp_path / "two.jsonl", tmp_path / "elsewhere/one.jsonl"):
        with pytest.raises(UserError, match=r"000001-000.png' exists already"):
            run(second, [{"prompt": "a dog"}], out, shade=1)
    assert files(out) == before
    assert run(tmp_path / "two.jsonl", [{"id": "two", "prompt": "a dog"}], out) == ["two-000.png"]
    assert {row["file"] for row in read_rows(out)} == {"000001-000.png", "two-000.png"}


def test_what_the_same_file_made_is_drawn_again_when_its_line_changes(tmp_path: Path) -> None:
    out, prompts = tmp_path / "o", tmp_path / "p.jsonl"
    assert run(prompts, HOLIDAY, out) == ["holiday-000.png"]
    assert run(prompts, HOLIDAY, out) == []
    changed = [{**HOLIDAY[0], "seed": 3}]
    assert run(prompts, changed, out) == ["holiday-000.png"]
    assert [row["seed"] for row in read_rows(out)] == [3]
    # A picture without a row, the rest of one, and an empty file are of a run that was killed.
    (out / MANIFEST).unlink()
    assert run(prompts, changed, out) == ["holiday-000.png"]
    whole = (out / "holiday-000.png").read_bytes()
    for rest in (whole[:230], b""):
        (out / "holiday-000.png").write_bytes(rest)
        assert run(prompts, changed, out) == ["holiday-000.png"]
    # A photo put in its place is not.
    PIL.Image.fromarray(render(scene_at(0, 1))).save(out / "holiday-000.png")
    photo = files(out)
    with pytest.raises(UserError, match="exists already"):
        run(prompts, [{**HOLIDAY[0], "seed": 4}], out)
    assert files(out) == photo
    # Moved with its pictures, an unchanged file of prompts finds them.
    shutil.rmtree(out)
    run(prompts, HOLIDAY, out)
    assert run(tmp_path / "moved/p.jsonl", HOLIDAY, out) == []


def test_a_line_does_not_overwrite_what_another_reads(tmp_path: Path) -> None:
    out = tmp_path
    lines = [{"id": "a", "prompt": "a red circle"}, {"id": "b", "prompt": [{"image": "a-000.png"}]}]
    run(tmp_path / "p.jsonl", lines[:1], out)
    before = (out / "a-000.png").read_bytes()
    assert run(tmp_path / "p.jsonl", lines, out) == ["b-000.png"]
    with pytest.raises(UserError, match=r"line 1 would overwrite '.*a-000.png', which line 2 reads"):
        run(tmp_path / "p.jsonl", [{**lines[0], "seed": 1}, lines[1]], out)
    assert (out / "a-000.png").read_bytes() == before


def test_a_name_taken_while_drawing_is_another_runs(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps(HOLIDAY[0]) + "\n")
    (request,), _ = read_requests(prompts)
    store, other = Store(tmp_path / "o", MADE_BY), Store(tmp_path / "o", MADE_BY)
    assert store.open([request]) == other.open([request]) == ([], [])
    row = store.row(request, 0)
    assert store.save(np.zeros((8, 8, 3), np.uint8), row)
    assert not other.save(np.zeros((8, 8, 3), np.uint8), row)  # the same picture: theirs
    (tmp_path / "o/holiday-000.png").unlink()
    save_png(tmp_path / "o/holiday-000.png", render(scene_at(0, 0)))
    before = files(tmp_path / "o")
    with pytest.raises(TakenError, match="exists already"):
        store.save(np.zeros((8, 8, 3), np.uint8), row)
    assert files(tmp_path / "o") == before


def _runner(barrier: Any, *arguments: Any) -> None:
    barrier.wait()
    run(*arguments)


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    one = [{"id": f"one{i}", "prompt": "a cat", "num_images": 3} for i in range(3)]
    two = [{"id": f"two{i}", "prompt": "a dog", "num_images": 3} for i in range(3)]
    for attempt in range(3):
        out, barrier = tmp_path / f"o{attempt}", context.Barrier(3)
        # The second file is drawn by two runs.
        jobs = [("one.jsonl", one, 1), ("two.jsonl", two, 2), ("two.jsonl", two, 2)]
        processes = [
            context.Process(target=_runner, args=(barrier, tmp_path / name, lines, out, shade))
            for name, lines, shade in jobs
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        rows = [row["file"] for row in read_rows(out)]
        assert sorted(rows) == sorted(path.name for path in out.glob("*.png"))
        assert len(rows) == 18
        for path in out.glob("*.png"):
            assert np.all(np.asarray(PIL.Image.open(path)) == (1 if path.name.startswith("one") else 2))
        assert not list(out.glob(".*"))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = atomic._place_new

    def full(partial: Path, target: Path) -> None:
        if "two" in target.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(partial, target)

    lines = [{"id": "one", "prompt": "a"}, {"id": "two", "prompt": "b"}]
    monkeypatch.setattr(atomic, "_place_new", full)
    with pytest.raises(UserError, match=r"cannot write '.*two-000.png': no space is left"):
        run(tmp_path / "p.jsonl", lines, tmp_path / "o")
    assert [row["file"] for row in read_rows(tmp_path / "o")] == ["one-000.png"]
    monkeypatch.setattr(atomic, "_place_new", real)
    assert run(tmp_path / "p.jsonl", lines, tmp_path / "o") == ["two-000.png"]
