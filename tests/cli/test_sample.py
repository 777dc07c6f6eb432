"""`mvader sample` and `mvader figure`: what they write, and every mistake in one sentence with nothing written."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.errors import Notice
from mvader_jax.images.png import read_png_metadata
from mvader_jax.sampling.generate import Draws
from mvader_jax.sampling.pipeline import Pipeline

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return Pipeline(micro.bundle())


@pytest.fixture
def run(
    loaded: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command line in a directory of its own, with a small model loaded already."""
    monkeypatch.chdir(tmp_path)
    load = Pipeline.load

    def loading(name: str, **options: object) -> Pipeline:
        return loaded if name == "micro" else load(name, cache=False)

    monkeypatch.setattr(Pipeline, "load", loading)
    monkeypatch.setattr("mvader_jax.storage.bundle_config.holds_fast", lambda name: False)

    def go(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return go


def picture(path: Path, index: int = 0) -> PIL.Image.Image:
    image = PIL.Image.fromarray(render(scene_at(0, index)))
    image.save(path)
    return image


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


FEW = ("--bundle", "micro", "--steps", "2", "--num-images", "2", "--quiet")


def test_writes_pictures_a_grid_and_a_manifest(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for _ in range(2):
        code, out, _ = run("sample", "in blue", "a.png@0.3", "--negative", "a red cross", "--seed", "7", *FEW)
        assert code == 0
    names = [Path(line).name for line in out.splitlines()]
    assert names == ["00002.png", "00003.png", "grid-00002.png"]
    rows = [json.loads(line) for line in (tmp_path / "outputs/manifest.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [f"{i:05d}.png" for i in range(4)]
    assert rows[0]["prompt"] == ["in blue", "a.png@0.3"] and rows[0]["negative"] == ["a red cross"]
    assert rows[0]["seed"] == 7 and rows[0]["steps"] == 2 and rows[1]["index"] == 1
    meta = read_png_metadata(tmp_path / "outputs/00001.png")
    assert json.loads(meta["prompt"]) == ["in blue", "a.png@0.3"] and meta["seed"] == "7"
    assert meta["AI-generated"] == "true" and "trainedAlgorithmicMedia" in meta["XML:com.adobe.xmp"]
    first, again = (
        np.asarray(PIL.Image.open(tmp_path / f"outputs/{name}.png")) for name in ("00000", "00002")
    )
    np.testing.assert_array_equal(first, again)
    assert not list((tmp_path / "outputs").glob(".*"))


def test_seeds_and_what_is_told(
    run: Run, loaded: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture's own seed is in its row; a text without quotation marks, and what is cut, is told."""

    def black(draws: Draws, *_: object) -> tuple[jnp.ndarray, jnp.ndarray]:
        return jnp.zeros((len(draws.seeds), 64, 64, 3), jnp.uint8), jnp.ones(len(draws.seeds), bool)

    def drawn(where: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / where / "manifest.jsonl").read_text().splitlines()]

    monkeypatch.setattr(loaded, "generate", black)
    picture(tmp_path / "a.png")
    micro_few = ("--bundle", "micro", "--steps", "2")
    code, _, said = run("sample", "a", "red", "circle", "--seed", "5,0:2", *micro_few)
    assert code == 0 and 'if they are one text, quote it: "a red circle"' in said
    assert [(row["seed"], row["index"]) for row in drawn("outputs")] == [(5, 0), (0, 0), (1, 0)]
    assert read_png_metadata(tmp_path / "outputs/00000.png")["seed"] == "5"
    img2img = ("sample", "--task", "img2img", "a.png", "a red circle", "--out", "noised")
    code, _, said = run(*img2img, "--num-images", "1", *micro_few)
    assert code == 0 and "quote" not in said and drawn("noised")[0]["strength"] == 0.6
    line = {"prompt": "a red circle " * 60, "seed": "3:5"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'long_prompts': 'refuse'})}")
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        _, _, said = run("sample", "a red circle " * 60, *FEW)
        assert said.startswith("mvader: a prompt has ") and "and is cut: left out is" in said
        code, _, said = run(
            "sample", "--prompts", "p.jsonl", "--num-images", "2", "--out", "many", *micro_few
        )
    assert code == 1 and "line 1: a prompt has" in said and "mvader: line 2: a prompt has" in said
    assert [(row["file"], row["seed"], row["index"]) for row in drawn("many")] == [
        ("000001-000.png", 3, 0),
        ("000001-001.png", 3, 1),
        ("000001-002.png", 4, 0),
        ("000001-003.png", 4, 1),
    ]


def test_odd_images_just_work(run: Run, loaded: Pipeline, tmp_path: Path) -> None:
    image = picture(tmp_path / "plain.png").resize((80, 64))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "rotated.jpg", exif=exif)
    PIL.Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "deep.png")
    for name in ("palette.png", "cmyk.jpg", "alpha.png", "rotated.jpg", "deep.png"):
        code, _, err = run("sample", name, "--out", name.partition(".")[0], *FEW)
        assert code == 0, err
        assert len(list((tmp_path / name.partition(".")[0]).glob("0*.png"))) == 2


def test_tasks_and_figures(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "b.png", 1)
    assert run("sample", "--task", "img2img", "a.png", "in blue", "--strength", "0.5", *FEW)[0] == 0
    row = json.loads((tmp_path / "outputs/manifest.jsonl").read_text().splitlines()[0])
    assert row["task"] == "img2img" and row["strength"] == 0.5
    code, out, err = run(
        "figure", "9", "--inputs", "a.png", "b.png", "--bundle", "micro", "--steps", "2", "--quiet"
    )
    assert code == 0, err
    assert (
        out.strip() == "outputs/figure-9.png"
        and read_png_metadata(tmp_path / "outputs/figure-9.png")["figure"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "'missing.png' does not exist"),
        (["image:missing"], "'missing' does not exist"),
        (["cut.png"], "truncated or damaged"),
        (["image:folder"], "is a directory"),
        (["folder.png"], "is a directory"),
        (["bomb.png"], "pixels"),
        (["text.png"], "not an image"),
        (["image:"], "names no image"),
        ([], "Missing prompt"),
        ([""], "empty"),
        (["  "], "empty"),
        (["text:"], "empty"),
        (["red@-1"], "at least 0"),
        (["red@nan"], "finite"),
        (["red@inf"], "finite"),
        (["red@lots"], "not a number"),
        (["red", "--negative", ""], "empty"),
        (["a.png"] * 30, "positions"),
        (["a red circle " * 60, "--long-prompts", "refuse"], "positions"),
        (["red", "--long-prompts", "chunk"], "reads a prompt in one piece; accepted: cut and refuse"),
        (["red", "--long-prompts", "wrap"], "long_prompts is 'wrap'; accepted: cut, refuse, chunk"),
        (["red", "--seed", "3:"], "seed is '3:'; accepted: a number"),
        (["red", "--seed", "0:9", "--num-images", "1000000"], "num_images is 9000000"),
        (["red", "--steps", "0"], "1 to 1000"),
        (["red", "--steps", "1001"], "1 to 1000"),
        (["red", "--num-images", "0"], "num_images is 0"),
        (["red", "--seed", "-1"], "seed is -1"),
        (["red", "--guidance-scale", "nan"], "finite"),
        (["red", "--negative-strength", "-1"], "strength is -1"),
        (["red", "--sampler", "magic"], "accepted: plms"),
        (["red", "--site", "nowhere"], "accepted: decoder"),
        (["red", "--dtype", "int8"], "accepted: float32"),
        (["red", "--mesh", "rows=2"], "unknown mesh axis"),
        (["red", "--bundle", "nope"], "no bundle 'nope'"),
        (["red", "--out", "a.png"], "is not a directory"),
        (["red", "--out", "locked/out"], "permission denied"),
        (["red", "--out", "no_manifest"], "manifest.jsonl': it is no file"),
        (["--prompts", "p.jsonl", "--out", "no_manifest"], "manifest.jsonl': it is no file"),
        (["red", "--task", "style"], "exactly 1 image"),
        (["red", "--strength", "0.5"], "--task img2img"),
        (["--prompts", "none.jsonl"], "cannot read the prompts"),
        (["red", "--prompts", "p.jsonl"], "leave out the parts"),
        (["caf\udce9"], "not valid Unicode"),
        (["typo.avif"], "write 'text:typo.avif' if it is meant as text"),
        (["notes"], "not an image that Pillow can read; write 'text:notes'"),
        (["red", "--batch", "4"], "--batch belongs to --prompts"),
        (["red", "--negative-strength", "0.5"], "there is no negative prompt"),
        (["red", "--guidance-scale", "1e39"], "guidance_scale is 1e+39"),
        (["red", "--sampler", "plms", "--eta", "0.5"], "takes none; those that do: ddim"),
        (["red", "--height", "65"], "multiples of 16"),
        (["--prompts", "p.jsonl", "--batch", "0"], "--batch is 0"),
        (["--prompts", "p.jsonl", "--out", "taken"], "taken/holiday-000.png' exists already"),
    ],
)
def test_mistakes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "id": "holiday"}\n')
    (tmp_path / "notes").write_text("words")
    (tmp_path / "no_manifest/manifest.jsonl").mkdir(parents=True)
    (tmp_path / "taken").mkdir()
    picture(tmp_path / "taken/holiday-000.png")
    (tmp_path / "locked").mkdir(mode=0o500)
    # Root may write everywhere; the system's answer for others is what counts here.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode))
    before = sorted(tmp_path.rglob("*"))
    bundle = () if "--bundle" in arguments else ("--bundle", "micro")
    code, out, err = run("sample", *arguments, *bundle, "--quiet")
    assert code == 2 and out == ""
    assert message in err and err.startswith("mvader: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_quiet_batch_says_which_lines_are_bad(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "red"}\n{"id": "../up", "prompt": "blue"}\n')
    code, _, err = run(
        "sample", "--prompts", "p.jsonl", "--bundle", "micro", "--steps", "2", "--out", "o", "--quiet"
    )
    assert code == 1 and err.count("line 2: the id '../up'") == 1, err


def test_files_have_the_names_that_people_gave_them(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    picture(tmp_path / f"{name}.png")
    code, _, err = run("sample", f"{name}.png", "--out", name, *FEW)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"] == [f"{name}.png"] and (tmp_path / name / rows[0]["file"]).exists()


def test_what_is_not_finite_is_not_written(run: Run, loaded: Pipeline, tmp_path: Path, monkeypatch) -> None:
    code, out, err = run("sample", "red", "--guidance-scale", "1e38", *FEW)
    assert code == 2 and out == "" and err.startswith("mvader: pictures 0, 1: NaN or infinity arose")
    assert err.count("\n") == 1 and not list((tmp_path).rglob("*.png"))

    def half(draws: Draws, static: object, watch: object = None) -> tuple[jnp.ndarray, jnp.ndarray]:
        count = len(draws.seeds)
        return jnp.zeros((count, 64, 64, 3), jnp.uint8), jnp.arange(count) > 0

    monkeypatch.setattr(loaded, "generate", half)
    code, out, err = run("sample", "red", *FEW)
    assert code == 2 and err.startswith("mvader: picture 0: NaN or infinity arose")
    assert [Path(line).name for line in out.splitlines()] == ["00000.png", "grid-00000.png"]
    (row,) = (json.loads(line) for line in (tmp_path / "outputs/manifest.jsonl").read_text().splitlines())
    assert row["file"] == "00000.png" and row["index"] == 1
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["figure", "7", "--out", "f.png", "--quiet"],
        ["evaluate", "--count", "2", "--parts", "text"],
    ):
        code, out, err = run(*command, "--bundle", "micro")
        assert code == 2 and out == "" and "NaN or infinity arose" in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure", "7", "a.png", "--out", "a.png"], "is one of the pictures to be read"),
        (["figure", "7", "--out", "a.png"], "exists already and is no figure"),
        (["figure", "7", "--steps", "0"], "steps is 0"),
        (["figure", "8"], "unknown figure '8'"),
        (["figure", "3", "--strength", "0.5"], "figure 3 takes no strength; those that do: 6, 7"),
        (["figure", "6", "--thetas", "1,0"], "figure 6 takes no thetas; those that do: weights"),
        (["figure", "7", "--values", "red"], "figure 7 takes no values; those that do: 5"),
        (["figure", "5", "--values", " , "], "--values ' , ' has nothing where a name is expected"),
        (["figure", "weights", "--thetas", "1,-1"], "at least 0"),
        (["evaluate", "--parts", "text", "--thetas", "1"], "thetas belongs to change, style, pairs"),
        (["evaluate", "--parts", "pairs", "--phrase", "in {color}"], "phrase belongs to change, which"),
        (["evaluate", "--parts", "text", "--balance"], "balance belongs to change, style, pairs"),
        (
            ["evaluate", "--balance-attention", "--parts", "pairs"],
            "their site is decoder; accepted: cross_att",
        ),
        (["evaluate", "--balance-attention", "--balance"], "--balance and --balance-attention both say"),
        (["evaluate", "--parts", "texts"], "unknown part 'texts'"),
        (["evaluate", "--sites", "x"], "unknown site 'x'"),
        (["evaluate", "--parts", "text,reader, text"], "--parts names text twice; name it once"),
        (["evaluate", "--parts", ""], "--parts '' has nothing where a name is expected"),
        (["evaluate", "--thetas", "1,.5,0.50"], "--thetas names .5 twice"),
        (["evaluate", "--world", "emoji", "--strengths", ".1,,.2"], "--strengths '.1,,.2' has nothing"),
        (["figure", "weights", "--thetas", "1,1"], "--thetas names 1 twice"),
        (["evaluate", "--phrase", "in red"], "names no colour"),
        (["figure", "7", "--strength", "2"], "strength is 2.0"),
        (["figure", "7", "--seed", "-1"], "seed is -1"),
        (["evaluate", "--out", "a.png"], "holds no numbers of an evaluation"),
        (["evaluate", "--out", "a.png/x.json"], "is not a directory"),
        (["evaluate", "--seed", "-1"], "seed is -1"),
        (["evaluate", "--batch", "0"], "batch is 0"),
        (["evaluate", "--thetas", "1,-1"], "at least 0"),
        (["evaluate", "--thetas", "1,x"], "at least 0"),
        (["demo", "--out", "."], "inputs/circle.png' exists already"),
        (["demo", "--out", "demo"], "demo/style.png' exists already and is no demo"),
        (["demo", "--steps", "0"], "steps is 0"),
        (["demo", "--num-images", "0"], "num_images is 0"),
    ],
)
def test_no_command_replaces_what_it_did_not_write(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for name in ("a.png", "inputs/circle.png", "demo/style.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / name, 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run(*arguments, "--bundle", "micro")
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_of_prompts(run: Run, tmp_path: Path) -> None:
    lines = [{"id": "one", "prompt": "a red circle", "num_images": 2}, {"prompt": []}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = run(
        "sample", "--prompts", "p.jsonl", "--batch", "2", "--out", "o", "--bundle", "micro", "--steps", "2"
    )
    assert code == 1 and "line 2: the prompt is empty" in err and "Traceback" not in err
    assert sorted(p.name for p in (tmp_path / "o").glob("*.png")) == ["one-000.png", "one-001.png"]
    (tmp_path / "p.jsonl").write_text(json.dumps(lines[0]) + "\n")
    code, _, err = run(
        "sample", "--prompts", "p.jsonl", "--batch", "2", "--out", "o", "--bundle", "micro", "--steps", "2"
    )
    assert code == 0 and "0 drawn, 2 were there" in err
