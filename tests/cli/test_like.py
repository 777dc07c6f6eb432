"""`mvader show` and `mvader sample --like`: what a picture was drawn with, told, and drawn again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import micro
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

import mvader_jax as mv
from mvader_jax.cli.main import main
from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.sampling.attention import Attention
from mvader_jax.sampling.generate import Draws
from mvader_jax.sampling.pipeline import Pipeline

Run = Callable[..., tuple[int, str, str]]
FEW = ("--bundle", "micro", "--steps", "2", "--num-images", "2", "--quiet")


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return Pipeline(micro.bundle(micro.NANO))


@pytest.fixture
def run(
    loaded: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command line in a directory of its own, with a small model loaded already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "load", lambda name, **options: loaded)

    def go(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return go


def picture(path: Path) -> None:
    PIL.Image.fromarray(render(scene_at(0, 0))).save(path)


def test_like_a_picture_and_shown(
    run: Run, loaded: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn again the same; under other flags those; what does nothing beside `--like` is refused."""
    asked: list[tuple[Any, Any]] = []

    def black(draws: Draws, static: Any, *_: object) -> tuple[jnp.ndarray, jnp.ndarray]:
        asked.append((draws, static))
        return jnp.zeros((len(draws.seeds), 8, 8, 3), jnp.uint8), jnp.ones(len(draws.seeds), bool)

    def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
        leaves = zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True)
        return one[1] == other[1] and all(np.array_equal(a, b) for a, b in leaves)

    monkeypatch.setattr(loaded, "generate", black)
    monkeypatch.setattr(loaded, "_loaded", {"bundle": "micro", "dtype": "float32"})
    picture(tmp_path / "a.png")
    prompt = ("in blue", "a.png@0.3", "--negative", "text:me@home@1", "--guidance-scale", "3")
    assert run("sample", *prompt, "--first", "1", "--seed", "7", *FEW)[0] == 0
    name = "outputs/00001.png"
    code, out, _ = run("show", name)
    assert code == 0 and "'in blue'\n" in out and "picture a.png, weight 0.3" in out
    again = out.splitlines()[-1].split("again", 1)[1]
    code, out, _ = run("show", "--json", name)
    row = json.loads(out)
    assert row["seed"] == 7 and row["index"] == 2 and row["prompt"][1] == {"image": "a.png", "weight": 0.3}
    assert row["command"] == shlex.split(again) and row["command"][2:4] == ["in blue", "a.png@0.3"]
    for words in (["sample", "--like", name], row["command"][1:]):
        assert run(*words, "--quiet")[0] == 0
    assert same(asked[-1], asked[-2]) and asked[-1][0].indices.tolist() == [2]
    (tmp_path / "a.png").unlink()  # small: it is kept in the picture
    assert run("sample", "--like", name, "--quiet")[0] == 0 and same(asked[-1], asked[-2])
    assert "again     mvader sample --like" in run("show", name)[1]
    more = ("--seed", "8", "--num-images", "2", "--steps", "3", "--negative", "a cat", "in red", "--quiet")
    code, out, err = run("sample", "--like", name, *more)
    assert code == 0, err
    drawn = json.loads(run("show", "--json", out.splitlines()[1])[1])
    assert drawn["prompt"] == [{"text": "in red", "weight": 1.0}] and drawn["guidance_scale"] == 3
    assert (drawn["seed"], drawn["index"], drawn["steps"], drawn["negative"][0]["text"]) == (8, 1, 3, "a cat")
    count = len(asked)
    for flags, message in (
        (["--strength", "0.5"], "drawn from noise alone"),
        (["--task", "variation"], "leave out --task"),
        (["--prompts", "p.jsonl"], "leave out --prompts"),
        (["--batch", "4"], "leave out --batch"),
        (["--fraction", "0.5"], "leave out --fraction"),
        (["--steps", "0"], "1 to 1000"),
    ):
        code, _, said = run("sample", "--like", name, *flags)
        assert code == 2 and message in said and said.count("\n") == 1
    picture(tmp_path / "b.png")
    code, out, said = run("show", "b.png", name)
    assert code == 2 and name in out and "'b.png' does not say how to draw it again" in said
    assert len(asked) == count


def test_a_sheet_of_attention_beside_the_pictures(
    run: Run, loaded: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def attend(elements: Any, **options: Any) -> Attention:
        calls.append(options)
        picture = PIL.Image.new("RGB", (8, 8))
        picture.info.update(mv.Drawing(mv.Prompt.of(elements)).note(7, 0))
        return Attention(mv.Pictures([picture]), tuple(elements), np.ones((1, 1, 4, 4), np.float32))

    monkeypatch.setattr(loaded, "attend", attend)
    code, out, err = run("sample", "a cat", "--attention-maps", "--seed", "7", *FEW)
    assert code == 0, err
    names = [Path(line).name for line in out.splitlines()]
    assert names == ["00000.png", "grid-00000.png", "attention-00000.png"]
    assert calls[0]["settings"].seed == 7 and calls[0]["num_images"] == 2
    monkeypatch.setattr(loaded, "attend", lambda prompt, *_, **__: attend(prompt.elements))
    code, out, err = run("sample", "--like", "outputs/00000.png", "--attention-maps", "--quiet")
    assert code == 0 and out.splitlines()[-1].endswith("attention-00001.png"), err
    code, _, said = run("sample", "a cat", "--attention-maps", "--task", "img2img")
    assert code == 2 and "leave out --task" in said


def test_no_bundle_is_fetched_that_a_picture_names(run: Run, tmp_path: Path) -> None:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("mvader", json.dumps({"prompt": [{"text": "a cat"}], "bundle": "hf:ORG/NAME"}))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    code, _, said = run("sample", "--like", "a.png")
    assert code == 2 and "nothing is fetched that a picture names; name it with --bundle" in said
    steers = {"prompt": [{"text": "a \x1b[2J cat\n"}, {"image": "\x1b"}], "bundle": "\x1b[2J\n"}
    info.add_itxt("mvader", json.dumps(steers))
    info.add_itxt("mvader-inputs", json.dumps([{"name": "\x1b"}]))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=info)
    code, out, _ = run("show", "b.png")
    assert code == 0 and "\x1b" not in out and out.splitlines()[-1].endswith("mvader sample --like b.png")
    code, _, said = run("sample", "--like", "a.png")
    assert code == 2 and "nothing is fetched that a picture names; name it with --bundle" in said
