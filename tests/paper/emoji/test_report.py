"""What numbers say: the goals beside what was reached, the paper's question, and sheets of pictures that are there."""

import json

import numpy as np
import PIL.Image
import pytest
from emoji_like import build_set

from mvader_jax.cli.main import main
from mvader_jax.data.sources import Emoji
from mvader_jax.errors import UserError
from mvader_jax.paper.emoji.methods import Methods, best, named, runs
from mvader_jax.paper.emoji.report import answer, read_numbers, report
from mvader_jax.paper.emoji.sheets import Strips
from mvader_jax.paper.emoji.tasks import Benchmark

SETTINGS = {"count": 500, "prompts": "d5ef", "steps": 50}


def row(exact, subject=0.9, style=0.8, **how):
    return {"prompts": 500, **how, "exact_1": exact, "subject_1": subject, "style_1": style}


def numbers(prompt, **parts):
    return {
        "settings": SETTINGS,
        "told": [row(0.96, method="prompt", theta=1.0, site="any")],
        "told-de": [row(0.85, method="prompt", theta=1.0, site="any")],
        "told-fr": [row(0.9, method="prompt", theta=1.0, site="any")],
        "both": [
            {"prompts": 500, "method": "prompt", "theta": 1.0, "site": "any", "both": 0.8, "exact": 0.5}
        ],
        "style-unseen-pair": [
            row(prompt, method="prompt", theta=1.0, site="any"),
            row(0.4, method="prompt", theta=0.2, site="decoder"),
            row(0.05, method="img2img", strength=0.5),
            row(0.1, 0.3, 0.2, method="img2img", strength=0.6),
        ],
        **parts,
    }


def test_goals_stand_beside_what_was_reached():
    text = report({"zero_shot": numbers(0.3), "interleaved": numbers(0.75)})
    lines = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if "|" in line}
    assert lines["percent (reached: bold)"] == ["goal", "zero_shot", "interleaved |"]
    assert lines["told, seen pair, exact"] == ["95", "**96.0**", "**96.0** |"]
    assert lines["style change, unseen pair, exact"] == ["75", "30.0", "**75.0** |"]
    assert lines["the same at the best theta and site"] == ["", "40.0", "75.0 |"]
    assert lines["the same by img2img at its best strength"] == ["", "10.0", "10.0 |"]
    assert lines["two pictures, both subjects found"] == ["80", "**80.0**", "**80.0** |"]
    assert lines["German against English, told, exact, points"][1] == "-11.0"
    assert lines["French against English, told, exact, points"][1] == "**-6.0**"
    # Languages that are as bad as a bad English are no success.
    bad = {**numbers(0.3), "told": [row(0.1, method="prompt", theta=1.0, site="any")]}
    bad["told-fr"] = [row(0.05, method="prompt", theta=1.0, site="any")]
    assert "| French against English, told, exact, points | -10 | -5.0 |" in report({"bad": bad})
    assert lines["shown, seen subject, exact"] == ["90", "", " |"]  # not asked
    curve = text[
        text.index("| zero_shot, unseen pair: exact / subject / style; theta | at decoder |") :
    ].splitlines()
    assert curve[2:4] == ["| 1 | 30.0 / 90.0 / 80.0 |", "| 0.2 | 40.0 / 90.0 / 80.0 |"]
    strengths = text[text.index("| zero_shot, unseen pair: exact / subject / style; strength | img2img |") :]
    assert strengths.splitlines()[2:4] == ["| 0.5 | 5.0 / 90.0 / 80.0 |", "| 0.6 | 10.0 / 30.0 / 20.0 |"]
    assert "| both | 80.0 |" in text


def test_the_papers_question_is_answered_by_the_best_of_each():
    assert answer("zero_shot", numbers(0.3)) == (
        "zero_shot: asked for a picture's subject in another style, the multimodal prompt draws exactly the right picture "
        "in 40.0 % of 500 unseen pairs (the right subject in 90.0 %, the right style in 80.0 %; theta 0.2, decoder), "
        "img2img with the same words at its best strength, 0.6, in 10.0 % (30.0 %, 20.0 %): 4.0 times as often."
    )
    assert "no numbers" in answer("x", {"settings": SETTINGS})
    rows = numbers(0.75)["style-unseen-pair"]
    assert named(best(rows, "prompt")) == "prompt, theta 1" and best(rows, "text") is None


def test_runs_that_do_not_compare_and_files_of_something_else_are_refused(tmp_path, capsys):
    other = {**numbers(0.3), "settings": {**SETTINGS, "steps": 25}}
    with pytest.raises(UserError, match="do not compare: steps is 50 in a and 25 in b"):
        report({"a": numbers(0.3), "b": other})
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(numbers(0.3)))
    for content in ("", "[1]", '{"settings": {"count": 2}}', json.dumps({**numbers(0.3), "x": []})):
        bad.write_text(content)
        with pytest.raises(UserError, match="holds no numbers of mvader evaluate --world emoji"):
            read_numbers(bad)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--world", "emoji", "--report", f"{good},{bad}"])
    assert end.value.code == 2 and "bad.json" in capsys.readouterr().err


def test_sheets_show_what_is_asked_and_each_method_at_its_best(tmp_path):
    world = Emoji(build_set(tmp_path / "set"), least_styles=1).world()
    tasks = Benchmark(world, 3).tasks("style")
    strips, rows = Strips(tmp_path), []
    strips.begin("0")
    names = ("prompt", "text", "told", "picture", "img2img", "img2img-told")
    for run in runs(tasks, Methods(names, thetas=(1.0, 0.2), sites=("both",), strengths=(0.3, 0.6))):
        rows.append({**run.row, "exact_1": 0.5 if run.row.get("strength") == 0.6 else 0.1})
        strips.add("style", rows[-1], np.full((3, 64, 64, 3), 9 * len(rows), np.uint8))
    strips.save_sheet(world, "style", tasks, rows)
    sheet = np.asarray(PIL.Image.open(tmp_path / "style.png"))
    # Words, shown, right; the prompt, text, told, picture, img2img, and that with the answer told.
    assert sheet.shape[1] == 9 * (128 + 6) + 6
    grey = [value for value in range(9, 91, 9) if (sheet == value).all(2).sum() >= 3 * 128**2]
    assert grey == [9 * number for number in (1, 3, 4, 5, 7, 9)]
