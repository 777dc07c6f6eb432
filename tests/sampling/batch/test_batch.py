"""Batch sampling with the smallest model: every picture once, the same picture every time, bad lines told."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata, save_png
from mvader_jax.images.read import load_image
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.sampling.batch.prepare import Preparer
from mvader_jax.sampling.batch.requests import read_requests
from mvader_jax.sampling.batch.run import Progress, Report, sample_all
from mvader_jax.sampling.batch.shapes import Item, Shape, plan, shapes
from mvader_jax.sampling.manifest import read_rows
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings, StaticSettings

STEPS = 2


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(micro.bundle())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        save_png(tmp_path / f"{number}.png", render(scene_at(0, number)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    return tmp_path


LINES: list[dict[str, Any]] = [
    {"id": "a", "prompt": "a red circle", "num_images": 3, "seed": 5},
    {"id": "b", "prompt": [{"text": "in blue"}, {"image": "0.png", "weight": 0.3}], "guidance_scale": 2.0},
    {"id": "c", "prompt": [{"image": "0.png"}], "negative": [{"text": "a small red cross"}]},
    {"id": "d", "prompt": [{"image": "1.png"}, {"text": "in red"}], "num_images": 2},
]


def write(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(pipe: Pipeline, path: Path, out: Path, size: int = 4, progress: Progress | None = None) -> Report:
    requests, problems = read_requests(path, SamplingSettings(steps=STEPS))
    return sample_all(pipe, requests, problems, out, size=size, progress=progress)


def pictures(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(load_image(path)) for path in sorted(out.glob("*.png"))}


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.mean(np.abs(one.astype(int) - other) <= 1) >= 0.999)


def test_draws_every_picture_once_and_only_what_is_missing(pipe: Pipeline, folder: Path) -> None:
    path, out = write(folder, LINES), folder / "out"
    report = run(pipe, path, out)
    names = ["a-000.png", "a-001.png", "a-002.png", "b-000.png", "c-000.png", "d-000.png", "d-001.png"]
    assert (report.drawn, report.present, report.problems) == (7, 0, [])
    # The three of text fill no batch and join those with an image; a repeated image is encoded once.
    assert report.compiled == 1 and report.encoded == 2
    drawn = pictures(out)
    assert list(drawn) == names and sorted(row["file"] for row in manifest(out)) == names
    row = next(row for row in manifest(out) if row["file"] == "b-000.png")
    assert row["prompt"][1]["weight"] == 0.3 and row["guidance_scale"] == 2.0 and row["steps"] == STEPS
    assert json.loads(read_png_metadata(out / "b-000.png")["prompt"]) == row["prompt"]
    # Without a file, a bucket or neighbours: the same picture.
    one = pipe([load_image(folder / "0.png")], negative="a small red cross", steps=STEPS)
    assert same(np.asarray(one[0]), drawn["c-000.png"])

    # Again: nothing to do. With files and rows missing, half written or asked for differently: those alone.
    assert run(pipe, path, out).drawn == 0
    (out / "a-001.png").unlink()
    (out / "d-001.png").write_bytes((out / "d-001.png").read_bytes()[:200])
    (out / ".b-000.png.1-0123abcd.partial").write_bytes(b"x")
    rows = (out / "manifest.jsonl").read_text().splitlines()
    rows = [row for row in rows if '"c-000.png"' not in row]
    (out / "manifest.jsonl").write_text("\n".join(rows) + "\n" + '{"file": "c-000.png", "trunc')
    changed = [*LINES[:1], {**LINES[1], "guidance_scale": 3.0}, *LINES[2:]]
    report = run(pipe, write(folder, changed), out)
    assert (report.drawn, report.present, report.compiled) == (4, 3, 0)
    again = pictures(out)
    assert sorted(row["file"] for row in manifest(out)) == names == list(again)
    assert all(np.array_equal(again[name], drawn[name]) for name in names if name != "b-000.png")
    assert not np.array_equal(again["b-000.png"], drawn["b-000.png"])
    assert not list(out.glob(".*"))


def test_an_image_of_two_names_is_encoded_once(pipe: Pipeline, folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    names = ("0.png", "copy.png", "1.png")
    requests, _ = read_requests(write(folder, [{"prompt": [{"image": name}]} for name in names]))
    shape_of, _ = shapes(pipe.bundle, requests)
    preparer = Preparer(pipe, 1)
    batches = plan([(Item(one, 0), shape_of[one.line]) for one in requests], 1)
    first, second, third = (preparer.read(batch) for batch in batches)
    assert (len(first.new), len(second.new), len(third.new)) == (1, 0, 1)
    assert list(first.pictures.values()) == list(second.pictures.values()) == first.new


def test_equal_prompts_of_a_batch_are_embedded_once(
    pipe: Pipeline, folder: Path, by_seven: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[tuple[int, Any]] = []
    generate = pipe.generate

    def counted(draws: Any, *rest: Any) -> Any:
        embedded.append((draws.prompt.count, draws.prompt.rows))
        return generate(draws, *rest)

    monkeypatch.setattr(pipe, "generate", counted)
    prompt = LINES[0]["prompt"]
    lines = [LINES[0], {"id": "e", "prompt": prompt, "seed": 9, "num_images": 4, "guidance_scale": 3.0}]
    assert run(pipe, write(folder, lines), folder / "out", size=7).drawn == 7
    assert [(count, list(rows)) for count, rows in embedded] == [(1, [0] * 7)]
    found = pictures(folder / "out")
    assert all(same(found[name], by_seven[name]) for name in ("a-000.png", "a-001.png", "a-002.png"))
    # Two prompts are two, and filling is none. What is drawn again is drawn by the program of before.
    embedded.clear()
    lines += [{"id": "f", "prompt": "a blue square", "seed": 2}]
    assert run(pipe, write(folder, lines), folder / "two", size=4).drawn == 8
    assert [(count, list(rows)) for count, rows in embedded] == [(2, [0, 0, 0, 0]), (2, [0, 0, 0, 1])]
    (folder / "two" / "f-000.png").unlink()
    assert run(pipe, write(folder, lines), folder / "two", size=4).compiled == 0
    # Where most prompts differ each row has its own.
    embedded.clear()
    run(pipe, write(folder, [{"prompt": "a red circle"}, {"prompt": "in blue"}]), folder / "three", size=3)
    assert embedded == [(3, None)]


def test_an_image_whose_contents_changed_is_drawn_from_again(pipe: Pipeline, folder: Path) -> None:
    path, out = write(folder, LINES), folder / "out"
    run(pipe, path, out)
    before = pictures(out)
    save_png(folder / "0.png", render(scene_at(0, 7)))
    assert run(pipe, path, out).drawn == 2
    after = pictures(out)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"b-000.png", "c-000.png"} and len(manifest(out)) == len(after)


@pytest.fixture(scope="module")
def by_seven(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The pictures of LINES, drawn seven at a time."""
    place = tmp_path_factory.mktemp("seven")
    for number in range(2):
        save_png(place / f"{number}.png", render(scene_at(0, number)))
    run(pipe, write(place, LINES), place / "out", size=7)
    return pictures(place / "out")


def test_a_picture_depends_on_neither_batch_nor_neighbours(
    pipe: Pipeline, folder: Path, by_seven: dict[str, np.ndarray]
) -> None:
    # In its row of the same program, beside others: the same bits.
    others = [{**LINES[0], "seed": 9}, {**LINES[1], "seed": 4}, {**LINES[2], "guidance_scale": 3.0}, LINES[3]]
    assert run(pipe, write(folder, others), folder / "others", size=7).compiled == 0
    beside = pictures(folder / "others")
    for name in ("d-000.png", "d-001.png"):
        np.testing.assert_array_equal(beside[name], by_seven[name])
    assert not np.array_equal(beside["a-000.png"], by_seven["a-000.png"])
    # Alone it stands in another row, where a matrix product may round otherwise.
    run(pipe, write(folder, LINES[3:]), folder / "alone", size=7)
    assert all(same(picture, by_seven[name]) for name, picture in pictures(folder / "alone").items())
    run(pipe, write(folder, LINES[:1]), folder / "one", size=1)
    found = pictures(folder / "one")
    assert len(found) == 3 and all(same(picture, by_seven[name]) for name, picture in found.items())


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 8},
        pytest.param({"data": 2}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_picture_does_not_depend_on_the_mesh(
    pipe: Pipeline, folder: Path, by_seven: dict[str, np.ndarray], axes: dict[str, int]
) -> None:
    (count,) = axes.values()
    on_mesh = Pipeline(pipe.bundle, mesh=make_mesh(MeshConfig(**axes), jax.devices()[:count]))
    assert on_mesh.shards == count
    run(on_mesh, write(folder, LINES), folder / "mesh", size=7)
    found = pictures(folder / "mesh")
    assert list(found) == list(by_seven) and all(same(found[name], by_seven[name]) for name in found)


def test_bad_lines_are_told_and_the_rest_goes_on(pipe: Pipeline, folder: Path) -> None:
    good = json.dumps({"id": "good", "prompt": "a red circle"})
    bad = {
        "not JSON": "{",
        "not a JSON object": "[1]",
        "no 'prompt'": "{}",
        "unknown key 'prompts'": '{"prompts": "x"}',
        "prompt is empty": '{"prompt": []}',
        "is empty; write": '{"prompt": [{"text": ""}]}',
        "the weight of": '{"prompt": [{"text": "x", "weight": -1}]}',
        "NaN is no JSON": '{"prompt": [{"text": "x", "weight": NaN}]}',
        "nowhere.png' does not exist": '{"prompt": [{"image": "nowhere.png"}]}',
        "cut.png' is": '{"prompt": [{"image": "cut.png"}]}',
        "of line 1 already": '{"id": "good", "prompt": "x"}',
        "the id '../x'": '{"id": "../x", "prompt": "x"}',
        "steps is 0": '{"prompt": "x", "steps": 0}',
        "num_images is 1.5": '{"prompt": "x", "num_images": 1.5}',
        "seed is -1": '{"prompt": "x", "seed": -1}',
        "the sampler is 'magic'": '{"prompt": "x", "sampler": "magic"}',
        "not valid Unicode": '{"prompt": "lone \\ud83d surrogate"}',
        "nul\\x00.png' has a path": '{"prompt": [{"image": "nul\\u0000.png"}]}',
        "lone\\ud83d.png' has a path": '{"prompt": [{"image": "lone\\ud83d.png"}]}',
        "cannot read the mask": json.dumps(
            {"prompt": [{"image": "0.png", "regions": [{"mask": "nul\0.png", "weight": 2}]}]}
        ),
        "the string 'typo.avif' names a picture": '{"prompt": "typo.avif"}',
        "weight of 'big'": '{"prompt": [{"text": "big", "weight": 1' + "0" * 400 + "}]}",
        "guidance_scale is 1": '{"prompt": "x", "guidance_scale": 1' + "0" * 400 + "}",
        "guidance_scale is 1e+39": '{"prompt": "x", "guidance_scale": 1e39}',
        "'prompt' stands twice": '{"prompt": "x", "prompt": "y"}',
        "height is 65": '{"prompt": "x", "height": 65}',
        "nested too deeply": "[" * 100_000,
        "but no 'negative'": '{"prompt": "x", "negative_strength": 0.5}',
        "more than this model's": json.dumps({"prompt": "a red circle " * 60, "long_prompts": "refuse"}),
    }
    path = folder / "prompts.jsonl"
    path.write_text("\n".join([good, *bad.values()]) + "\n", encoding="utf-8")
    with path.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    report = run(pipe, path, folder / "out")
    assert report.drawn == 1 and list(pictures(folder / "out")) == ["good-000.png"]
    reasons = {problem.line: problem.reason for problem in report.problems}
    for number, text in enumerate([*bad, "not UTF-8"], start=2):
        assert text in reasons[number], (number, reasons.get(number))
    with pytest.raises(UserError, match="cannot read the prompts"):
        read_requests(folder / "none.jsonl")


def test_pictures_that_are_not_finite_are_told_and_the_others_stay(pipe: Pipeline, folder: Path) -> None:
    lines = [{"id": "a", "prompt": "a red circle", "num_images": 2}, {"id": "b", "prompt": "a red circle"}]
    lines += [{"id": "wild", "prompt": "a red circle", "num_images": 2, "guidance_scale": 1e38}]
    report = run(pipe, write(folder, lines), folder / "out")
    # Told batch by batch: its two pictures are drawn in different ones.
    assert report.drawn == 3
    assert [(problem.line, problem.reason.partition(":")[0]) for problem in report.problems] == [
        (3, "wild-000.png"),
        (3, "wild-001.png"),
    ]
    assert all(": NaN or infinity" in p.reason and "\n" not in p.reason for p in report.problems)
    assert list(pictures(folder / "out")) == ["a-000.png", "a-001.png", "b-000.png"]
    assert sorted(row["file"] for row in manifest(folder / "out")) == ["a-000.png", "a-001.png", "b-000.png"]


class StopAfter(Progress):
    def __init__(self, number: int) -> None:
        self.number = number

    def advance(self, count: int) -> None:
        number, self.number = self.number, 0
        if number:
            signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_directory_to_go_on_from(pipe: Pipeline, folder: Path, number: int) -> None:
    path, out = write(folder, [{"prompt": "a red circle", "num_images": 20}]), folder / "out"
    report = run(pipe, path, out, progress=StopAfter(number))
    assert report.stopped == number and 0 < report.drawn < 20
    assert len(manifest(out)) == report.drawn == len(pictures(out))
    rest = run(pipe, path, out)
    assert rest.drawn == 20 - report.drawn and rest.stopped is None
    assert len({row["file"] for row in manifest(out)}) == len(manifest(out)) == 20
    with PIL.Image.open(out / "000001-019.png") as image:
        image.load()


def test_what_is_left_of_a_bucket_joins_a_larger_one() -> None:
    def shape(length: int, images: int = 0, steps: int = 50) -> Shape:
        return Shape(StaticSettings("plms", steps, (8, 8)), (), False, length, images)

    def items(count: int) -> list[Item]:
        return [Item(SimpleNamespace(prompt=index), index) for index in range(count)]  # type: ignore[arg-type]

    wanted = [(8, 0, 10), (16, 0, 3), (32, 1, 5), (16, 1, 1)]
    queue = [(item, shape(length, images)) for length, images, n in wanted for item in items(n)]
    queue += [(item, shape(8, 0, steps=20)) for item in items(2)]
    batches = plan(queue, 4)
    assert sum(len(batch.items) for batch in batches) == 21
    assert [(b.shape.static.steps, b.shape.length, len(b.items)) for b in batches] == [
        (50, 32, 4),
        (50, 32, 3),
        (50, 16, 4),
        (20, 8, 2),
        (50, 8, 4),
        (50, 8, 4),
    ]


def test_lines_that_start_from_a_picture(tmp_path: Path) -> None:
    """As the pipeline's init_image draws them; of one program, whatever the strength, which is 0.6 if none is given."""
    pipe = Pipeline(micro.bundle(micro.NANO))
    for number, name in enumerate(("a.png", "b.png")):
        save_png(tmp_path / name, render(scene_at(0, number)))
    lines = [
        {"prompt": "in red", "init_image": "a.png"},
        {"prompt": "in red", "init_image": "b.png", "strength": 0.2},
        {"prompt": "in red", "init_image": "b.png", "seed": "3:5"},
        {"prompt": "in red", "init_image": "none.png"},
        {"prompt": "in red", "strength": 0.5},
        {"prompt": "in red", "init_image": "https://example.org/a.png"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    requests, problems = read_requests(tmp_path / "p.jsonl", SamplingSettings(steps=5))
    report = sample_all(pipe, requests, problems, tmp_path / "out", size=4)
    assert report.drawn == 4 and report.compiled == 1
    said = {problem.line: problem.reason for problem in report.problems}
    assert "does not exist" in said[4] and "but no 'init_image'" in said[5] and "is a URL" in said[6]
    rows = {row["file"]: row for row in read_rows(tmp_path / "out")}
    assert [rows[f"{name}.png"]["strength"] for name in ("000001-000", "000002-000", "000003-001")] == [
        0.6,
        0.2,
        0.6,
    ]
    for file, init, options in (
        ("000001-000.png", "a.png", {}),
        ("000002-000.png", "b.png", {"strength": 0.2}),
        ("000003-001.png", "b.png", {"seed": 4}),
    ):
        (alone,) = pipe("in red", steps=5, init_image=tmp_path / init, **options)
        drawn = np.asarray(PIL.Image.open(tmp_path / "out" / file))
        assert np.abs(drawn.astype(int) - np.asarray(alone)).max() <= 1
