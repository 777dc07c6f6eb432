"""COCO-30k's prompts: which captions, the same for a seed, a seed for each picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.paper.coco import chosen, read_captions, write_prompts
from mvader_jax.sampling.batch.requests import read_requests


def annotations(file: Path, pictures: int = 20) -> Path:
    rows = [
        {"image_id": 100 + i, "id": 5 * i + j, "caption": f" a dog\nno {i} of way {j}. "}
        for i in range(pictures)
        for j in range(5)
    ]
    file.write_text(json.dumps({"info": {}, "images": [], "annotations": rows}))
    return file


def test_a_caption_of_each_of_so_many_pictures(tmp_path: Path) -> None:
    captions = read_captions(annotations(tmp_path / "c.json"))
    assert captions[100][0] == "a dog no 0 of way 0."
    found = chosen(captions, 12, seed=3)
    assert len({image for image, _ in found}) == 12
    assert all(text in captions[image] for image, text in found)
    assert {text[-2] for _, text in found} > {"0"}
    assert chosen(captions, 12, seed=3) == found and chosen(captions, 5, seed=3) == found[:5]
    assert chosen(captions, 12, seed=4) != found
    with pytest.raises(UserError, match="captions of 20 pictures, and 21 are asked for"):
        chosen(captions, 21, seed=3)


def test_the_prompts_are_read_by_those_who_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = annotations(tmp_path / "c.json")
    with pytest.raises(SystemExit) as stopped:
        main([
            "evaluate", "--world", "coco", "--data", str(file), "--count", "7", "--prompts", str(tmp_path / "asked")
        ])  # fmt: skip
    assert stopped.value.code == 0
    requests, problems = read_requests(write_prompts(tmp_path / "again", file, 7, 0))
    assert not problems and len({request.settings.seed for request in requests}) == 7
    assert all(len(request.id) == 12 for request in requests)
    again = (tmp_path / "again" / "prompts.jsonl").read_text()
    assert (tmp_path / "asked" / "prompts.jsonl").read_text() == again
    assert capsys.readouterr().out.strip() == str(tmp_path / "asked" / "prompts.jsonl")


def test_a_bundle_draws_them_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("mvader_jax.cli._prompts.sample_file", lambda *given: asked.extend(given) or 75)
    with pytest.raises(SystemExit) as stopped:
        main([
            "evaluate", "--world", "coco", "--data", str(annotations(tmp_path / "c.json")), "--count", "3",
            "--drawn", str(tmp_path / "drawn"), "--steps", "5", "--batch", "2",
        ])  # fmt: skip
    assert stopped.value.code == 75
    prompts, settings, each, batch, place = asked
    assert prompts == tmp_path / "drawn" / "prompts.jsonl" and (each, batch) == (1, 2)
    assert settings.steps == 5 and place.out == tmp_path / "drawn"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the captions"),
        ("words", "are no JSON"),
        ("[]", "has no 'annotations'"),
        ('{"annotations": [{"image_id": 3, "bbox": []}]}', "annotation 0 has no image_id and caption"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_captions(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--world coco draws many pictures: name a folder for them with --drawn"),
        (["--drawn", "x"], "name captions_val2014.json with --data"),
        (["--drawn", "x", "--parts", "text"], "--parts does nothing for --world coco"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--world", "coco", *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
