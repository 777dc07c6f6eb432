"""Prompts of two coloured objects: what is asked, what is counted, the form and what it saves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.scenes.world import Scene, SceneObject, render
from mvader_jax.errors import UserError
from mvader_jax.paper.conjunction.folder import read_form
from mvader_jax.paper.conjunction.tasks import (
    Conjunction,
    Seen,
    Thing,
    conjunctions,
    read,
    read_things,
    scene_things,
    shares,
)
from mvader_jax.sampling.batch.requests import read_requests


def thing(color: str, shape: str, position: str) -> SceneObject:
    return SceneObject(shape, color, "large", "solid", position)


RED_CIRCLE = thing("red", "circle", "left")


@pytest.mark.parametrize(
    ("objects", "counts"),
    [
        ((), [1, 0, 0, 0, 0]),
        ((thing("red", "cross", "left"), thing("blue", "triangle", "right")), [1, 0, 0, 0, 0]),
        ((thing("green", "circle", "left"),), [0, 1, 0, 0, 0]),
        ((RED_CIRCLE,), [0, 1, 1, 0, 0]),
        ((RED_CIRCLE, thing("cyan", "triangle", "right")), [0, 1, 1, 0, 0]),
        ((thing("blue", "circle", "left"), thing("red", "square", "right")), [0, 1, 0, 1, 0]),
        ((RED_CIRCLE, thing("red", "square", "right")), [0, 1, 1, 1, 0]),
        ((RED_CIRCLE, thing("blue", "square", "right")), [0, 1, 1, 1, 1]),
    ],
)
def test_a_picture_counts_as_what_it_shows(objects: tuple[SceneObject, ...], counts: list[int]) -> None:
    task = Conjunction("text", 0, (Thing("red", "circle"), Thing("blue", "square")), ("",))
    assert list(read(task, render(Scene("black", objects))).counts().values()) == counts


def test_a_colour_without_its_object_is_nothing() -> None:
    seen = Seen(there=(False, True), right=(True, False))
    assert shares([seen]) == {"none": 0, "one": 1, "one_right": 0, "two": 0, "two_right": 0}


def test_the_same_pairs_are_asked_in_words_in_pictures_and_mixed() -> None:
    asked = {part: conjunctions(scene_things(), part, 10) for part in ("text", "images", "mixed")}
    for text, images, mixed in zip(*asked.values(), strict=True):
        a, b = text.things
        assert text.things == images.things == mixed.things
        assert a.noun != b.noun and a.color != b.color
        assert text.elements == (f"a {a} and a {b}",) and images.elements == (a, b)
        assert mixed.elements in ((f"a {a}", b), (a, f"a {b}"))
    assert {isinstance(task.elements[0], str) for task in asked["mixed"]} == {True, False}
    assert len({task.things for task in asked["text"]}) == 10
    assert Thing("orange", "cup").words == "an orange cup"
    with pytest.raises(UserError, match="unknown part 'words'; accepted: text, images, mixed"):
        conjunctions(scene_things(), "words")


def objects(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(("green vase", "brown_chair", "red apple")):
        PIL.Image.new("RGB", (30, 20), (number, 0, 0)).save(folder / f"{name}.png")
    return folder


def test_things_are_the_pictures_of_a_folder(tmp_path: Path) -> None:
    found = read_things(objects(tmp_path / "things"))
    assert [str(one) for one in found] == ["brown chair", "green vase", "red apple"]
    PIL.Image.new("RGB", (3, 3)).save(tmp_path / "things" / "vase.png")
    with pytest.raises(UserError, match=r"vase.png' is not named as 'green vase.png', the colour first"):
        read_things(tmp_path / "things")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a pair needs two nouns and two colours"):
        read_things(tmp_path / "empty")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--world", "conjunction", *arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_pictures_of_scenes_are_judged_from_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--prompts", str(tmp_path / "asked"), "--parts", "text,mixed", "--count", "4") == 0
    requests, problems = read_requests(tmp_path / "asked" / "prompts.jsonl")
    assert not problems and [request.id for request in requests][:2] == ["text-000", "text-001"]
    assert len({request.settings.seed for request in requests}) == 8
    (tmp_path / "drawn").mkdir()
    for part in ("text", "mixed"):
        for task in conjunctions(scene_things(), part, 4):
            a, b = task.things
            both = (thing(a.color, a.noun, "left"), thing(b.color, b.noun, "right"))
            scene = Scene("black", both if part == "text" else both[:1])
            PIL.Image.fromarray(render(scene)).save(tmp_path / "drawn" / f"{task.id}-000.png")
    capsys.readouterr()
    assert run("--pictures", str(tmp_path / "drawn"), "--parts", "text,mixed", "--count", "4") == 0
    told = capsys.readouterr().out
    assert "| text | 0.0 | 100.0 | 100.0 | 100.0 | 100.0 |" in told
    assert "| mixed | 0.0 | 100.0 | 100.0 | 0.0 | 0.0 |" in told
    (tmp_path / "drawn" / "mixed-002-000.png").unlink()
    assert run("--pictures", str(tmp_path / "drawn"), "--parts", "text,mixed", "--count", "4") == 2
    assert "has no picture of 1 of 8 prompts; the first is mixed-002.png" in capsys.readouterr().err


def test_people_judge_real_things_in_a_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(objects(tmp_path / "things")), "--parts", "images", "--count", "3"]
    assert run("--prompts", str(tmp_path / "asked"), *data) == 0
    (tmp_path / "mine & yours").mkdir()
    for number in range(3):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "mine & yours" / f"images-{number:03d}.png")
    assert run("--pictures", str(tmp_path / "mine & yours"), *data) == 0
    page = (tmp_path / "mine & yours" / "form.html").read_text()
    assert sorted(re.findall(r'img src="([^"]+)"', page)) == [f"images-{n:03d}.png" for n in range(3)]
    assert "http" not in page and page.count("<fieldset id=") == 3
    assert page.count('name="second_color"') == 3 and "and it is a green vase" in page
    judged = tmp_path / "judged.csv"
    judged.write_text("id,first,first_color,second,second_color\nimages-000,1,1,1,0\nimages-001,0,0,0,0\n")
    capsys.readouterr()
    assert run("--report", str(judged)) == 0
    assert "| judged, images, 2 pictures | 50.0 | 50.0 | 50.0 | 50.0 | 0.0 |" in capsys.readouterr().out
    judged.write_text("id,first,first_color,second,second_color\nimages-000,1,yes,1,0\n")
    with pytest.raises(UserError, match="is not four of 0 and 1"):
        read_form(judged)
    judged.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no CSV of the form; its columns are id, first"):
        read_form(judged)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--thetas", "1"], "--thetas does nothing for --world conjunction; leave it out"),
        (["--parts", "words"], "unknown part 'words'"),
        (["--data", "nope"], "--data does nothing for --world conjunction; leave it out"),
        (["--pictures", "nope"], "'nope' is no folder of pictures"),
        (["--report", "nope.csv"], "cannot read 'nope.csv'"),
        (["--lora", "nope@0.5"], "nope does not exist; a LoRA is a .safetensors file"),
        (["--pictures", "nope", "--lora", "nope"], "--lora does nothing for --pictures, which are drawn"),
        (["--prompts", "asked", "--seed", "3"], "--seed does nothing for --prompts, which draws nothing"),
    ],
)
def test_what_does_nothing_is_refused(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


def test_a_bundle_that_draws_is_judged_and_its_numbers_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every picture that is drawn shows the first thing alone: the judge must say so."""
    tasks = conjunctions(scene_things(), "images", 3)
    shown = np.stack(
        [render(Scene("white", (thing(t.things[0].color, t.things[0].noun, "centre"),))) for t in tasks]
    )
    monkeypatch.setattr(
        "mvader_jax.cli._loading.load_pipeline",
        lambda *_, lora, **__: SimpleNamespace(recorded_lora={"lora": list(lora)}),
    )
    monkeypatch.setattr(
        "mvader_jax.paper.conjunction.evaluate.draw",
        lambda pipe, prompts, settings, done: shown[: len(prompts)],
    )
    out = tmp_path / "numbers.json"
    assert run("--parts", "images", "--count", "3", "--out", str(out), "--lora", "style@0.5") == 0
    assert json.loads(out.read_text())["settings"]["lora"] == ["style@0.5"]
    expected = {"none": 0, "one": 1, "one_right": 1, "two": 0, "two_right": 0}
    assert json.loads(out.read_text())["images"] == expected
    assert "| images | 0.0 | 100.0 | 100.0 | 0.0 | 0.0 |" in capsys.readouterr().out
