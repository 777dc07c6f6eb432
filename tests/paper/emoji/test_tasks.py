"""The benchmark's prompts, the methods, and a folder of somebody's pictures."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import micro
import pytest
from emoji_like import build_set

from mvader_jax.cli.main import main
from mvader_jax.data.emoji.relations import unseen_pair, unseen_subject
from mvader_jax.data.emoji.world import Sight
from mvader_jax.data.sources import Emoji
from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.paper.emoji.evaluate import evaluate
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.folder import judge_folder, write_prompts
from mvader_jax.paper.emoji.methods import METHODS, Methods, runs
from mvader_jax.paper.emoji.sheets import Strips
from mvader_jax.paper.emoji.table import Table, as_markdown
from mvader_jax.paper.emoji.tasks import PARTS, Benchmark
from mvader_jax.paper.evaluate import Evaluation
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.storage.programs import Program


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build_set(tmp_path_factory.mktemp("emoji"))


def called(*arguments):
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def world(path):
    return Emoji(path).world()


def test_prompts_are_drawn_once(world):
    first, again = Benchmark(world, 12), Benchmark(world, 12)
    for part in PARTS:
        assert first.tasks(part) == again.tasks(part)
        assert [task.id for task in first.tasks(part)[:1]] in ([f"{part}-0000"], [])
    assert first.digest() == again.digest() != Benchmark(world, 11).digest()
    with pytest.raises(UserError, match="count is 0; accepted"):
        Benchmark(world, 0)
    with pytest.raises(UserError, match="unknown part 'x'; accepted: reconstruction, told, told-unseen-pair"):
        first.tasks("x")


def test_parts_without_prompts_are_left_out_and_none_at_all_is_refused(path, world, tmp_path, capsys):
    few = dataclasses.replace(Emoji(path), subjects=2, tones=()).world()
    bench = Benchmark(few, 3)
    assert not bench.tasks("sequence") and bench.of(["told", "sequence"]).keys() == {"told"}
    with pytest.raises(UserError, match="a world of 2 subjects has no prompts of sequence"):
        bench.of(["sequence"])
    flags = ("evaluate", "--world", "emoji", "--data", path, "--subjects", "2", "--parts", "sequence")
    for more in (("--prompts", str(tmp_path / "asked")), ("--pictures", str(tmp_path))):
        assert called(*flags, *more) == 2
        assert "has no prompts of sequence" in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()


def test_parts_ask_what_they_say(world):
    bench = Benchmark(world, 60)

    def targets(part):
        return [task.target.pairs for task in bench.tasks(part)]

    def unseen(pair):
        return unseen_subject(pair.code) or unseen_pair(*pair)

    assert not any(unseen(pair) for pairs in targets("told") for pair in pairs)
    assert all(unseen_pair(*pairs[0]) for pairs in targets("told-unseen-pair"))
    assert targets("told") == targets("told-de") == targets("told-it")
    assert {pairs[0].code for pairs in targets("told-unseen-subject")} == {"1f370"}
    assert {unseen(pair) for pairs in targets("reconstruction") for pair in pairs} == {False, True}
    german, english = bench.tasks("told-de")[0], bench.tasks("told")[0]
    assert german.words[0].startswith(english.words[0].split(" in ")[0].split(" as ")[0] + " de")
    for part in ("style", "style-unseen-pair"):
        for task in bench.tasks(part):
            (shown,), (target,) = task.shown[0].pairs, task.target.pairs
            assert (shown.code, len(task.words)) == (target.code, 1) and shown.style != target.style
            assert not unseen(shown) and unseen(target) == (part != "style")
    assert {pairs[0].code for pairs in targets("style-unseen-subject")} == {"1f370"}
    assert targets("order") == [pairs[::-1] for pairs in targets("both")]
    for task in bench.tasks("ground"):
        assert task.shown[1].ground == task.target.ground != "white" and task.shown[0].ground == "white"
        assert task.shown[0].pairs == task.target.pairs
    for task in bench.tasks("element"):
        assert task.shown[0].pairs[0].style == task.target.pairs[0].style and unseen(task.target.pairs[0])


def test_methods_are_those_that_the_tasks_allow(world):
    bench = Benchmark(world, 3)
    few = Methods(thetas=(1.0, 0.5), sites=("both",), strengths=(0.3, 0.6))

    def named(part):
        return [run.row["method"] for run in runs(bench.tasks(part), few)]

    assert named("told") == ["prompt"]
    assert named("shown") == ["prompt", "told", "img2img", "img2img", "img2img-told", "img2img-told"]
    assert named("style") == [
        "prompt",
        "prompt",
        "balance",
        "balance-attention",
        "text",
        "told",
        "picture",
        *["img2img"] * 2,
        *["img2img-told"] * 2,
    ]
    balanced = ["balance", "balance-attention"]
    assert named("both") == ["prompt", *balanced, "told", "picture", "interpolation", "interpolation"]
    style = list(runs(bench.tasks("style"), few))
    assert [run.row.get("theta") for run in style[:2]] == [1.0, 0.5]
    assert [type(one) for one in style[1].elements[0]] == [str, Sight]
    assert [run.balance for run in style[:5]] == [False, False, True, "attention", False]
    assert [type(one) for one in style[4].elements[0]] == [str]
    assert [type(one) for one in style[6].elements[0]] == [Sight]
    assert (style[-1].row["strength"], len(style[-1].starts)) == (0.6, 3)
    with pytest.raises(UserError, match=f"unknown method 'x'; accepted: {', '.join(METHODS)}"):
        Methods(names=("x",))


def test_somebodys_pictures_are_judged_by_their_names(world, path, tmp_path, capsys):
    parts = ("told", "style-unseen-pair", "both", "ground")
    tasks = [task for part in parts for task in Benchmark(world, 4).tasks(part)]
    assert write_prompts(world, tmp_path / "asked", parts, 4) == len(tasks)
    lines = [json.loads(line) for line in (tmp_path / "asked" / "prompts.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [task.id for task in tasks]
    for line in lines:
        for element in line["prompt"]:
            assert isinstance(element, str) or (tmp_path / "asked" / element["image"]).is_file()
    (tmp_path / "mine").mkdir()
    for task in tasks[1:]:
        save_png(tmp_path / "mine" / f"{task.id}.png", world.render(task.target, SIDE), {})
    count = len(tasks)
    with pytest.raises(
        UserError, match=rf"has no picture of 1 of {count} prompts; the first is told-0000\.png"
    ):
        judge_folder(world, tmp_path / "mine", parts, 4)
    first = tmp_path / "mine" / f"{tasks[0].id}.png"
    for content in (b"", b"no picture", (tmp_path / "mine" / f"{tasks[1].id}.png").read_bytes()[:400]):
        first.write_bytes(content)
        with pytest.raises(
            UserError, match=r"the image '.*told-0000\.png' is .*(empty|not an image|truncated|damaged)"
        ):
            judge_folder(world, tmp_path / "mine", parts, 4)
    save_png(first.with_suffix(".jpg.png"), world.render(tasks[0].target, SIDE), {})  # of no prompt
    first.with_suffix(".webp").write_bytes(b"")
    with pytest.raises(UserError, match=r"two pictures of one prompt: told-0000\.png and told-0000\.webp"):
        judge_folder(world, tmp_path / "mine", parts, 4)
    first.with_suffix(".webp").unlink()
    first.with_suffix(".txt").write_text("a caption beside it")
    with pytest.raises(UserError, match="'nowhere' is no folder of pictures"):
        judge_folder(world, Path("nowhere"), parts, 4)
    # Of another size, as other models draw.
    save_png(first, world.render(tasks[0].target, 2 * SIDE), {})
    result = judge_folder(world, tmp_path / "mine", parts, 4)
    for part, names in (
        ("told", ("exact_1", "subject_1")),
        ("both", ("both", "order", "exact")),
        ("ground", ("ground", "exact_1")),
    ):
        assert [result[part][0][name] for name in names] == [1.0] * len(names)
    assert result["style-unseen-pair"][0]["style_1"] == 1.0
    command = ["evaluate", "--world", "emoji", "--data", path, "--count", "4", "--parts", ",".join(parts)]
    capsys.readouterr()
    out, mine = tmp_path / "out.json", str(tmp_path / "mine")
    assert called(*command, "--pictures", mine, "--out", str(out), "--sheets", str(tmp_path / "sheets")) == 0
    assert as_markdown(result) in capsys.readouterr().out
    assert json.loads(out.read_text())["told"] == result["told"]
    assert sorted(file.stem for file in (tmp_path / "sheets").glob("*.png")) == sorted(parts)
    # Numbers of something else are not replaced.
    out.write_text(json.dumps({**result, "settings": {**result["settings"], "pictures": "others"}}))
    assert called(*command, "--pictures", mine, "--out", str(out)) == 2
    assert "of other settings: pictures is others there and" in capsys.readouterr().err


def test_a_bundle_is_drawn_with_and_judged(world):
    methods = Methods(names=("prompt", "img2img"), thetas=(1.0,), strengths=(0.5,))
    settings = Evaluation(2, 2, SamplingSettings(steps=2, sampler="ddim"))
    result = evaluate(Pipeline(micro.bundle(micro.NANO)), world, ("style",), methods, settings)
    assert [row["method"] for row in result["style"]] == ["prompt", "img2img"]
    assert all(0 <= row["exact_1"] <= row["exact_5"] <= 1 and row["prompts"] == 2 for row in result["style"])


def test_all_rows_of_a_kind_are_one_program_and_a_run_goes_on(world, tmp_path, monkeypatch):
    """Few programs, whatever is asked; each row is kept when it is judged, and none is drawn twice."""
    pipe = Pipeline(micro.bundle(micro.NANO))
    drawn = []

    def blank(components, draws, *, static):
        count = len(draws.seeds)
        return jnp.full((count, *static.latent_size, 3), 255, jnp.uint8), jnp.ones(count, bool)

    # Counted as the programs that draw are, and compiled at once.
    pipe._generate = Program(blank, "blank", "of these tests")
    real = pipe.generate
    monkeypatch.setattr(pipe, "generate", lambda draws, static: drawn.append(1) or real(draws, static))
    methods = Methods(thetas=(1.0, 0.5), sites=("decoder", "both"), strengths=(0.5, 1.0))
    settings = Evaluation(2, 50, SamplingSettings(steps=2, sampler="ddim", guidance_scale=2.0))
    kept = []
    strips = Strips(tmp_path / "sheets")

    def table(known=None):
        return Table(known, lambda result: kept.append(json.loads(json.dumps(result))), strips)

    parts = ("style", "told-it", "both", "shown", "reconstruction")
    result = evaluate(pipe, world, parts, methods, settings, table=table())
    # Texts; a picture beside words or alone; two pictures; words or nothing from a picture, and from two; those of
    # several elements again with their attention balanced.
    assert pipe.compiled == 7
    assert [row["method"] for row in result["reconstruction"]] == ["autoencoder"]
    assert [len(result[part]) for part in parts] == [3 + 2 + 3 + 4, 1, 3 + 2 + 2, 2 + 4, 1]
    assert len(kept) == len(drawn) + 1 == sum(len(result[part]) for part in parts)
    # The prompts themselves come before what they are compared with.
    assert all(len(kept[4][part]) == 1 for part in parts)
    assert all(0 <= row["exact_1"] <= row["exact_5"] <= 1 and row["prompts"] == 2 for row in result["style"])
    assert sorted(file.stem for file in (tmp_path / "sheets").glob("*.png")) == sorted(parts)
    drawn.clear()
    again = evaluate(pipe, world, parts, methods, settings, table=table(kept[6]))
    assert len(drawn) == sum(len(result[part]) for part in parts) - 7 and again == result
    changed = dataclasses.replace(settings, sampling=settings.sampling.changed(steps=3))
    with pytest.raises(UserError, match="of other settings: steps is 2 there and 3 here"):
        evaluate(pipe, world, parts, methods, changed, table=table(result))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world", "paintings"], "unknown world 'paintings'; accepted: scenes, emoji"),
        (["--pictures", "x"], "--pictures does nothing for --world scenes"),
        (["--world", "emoji", "--phrase", "in {color}"], "--phrase does nothing for --world emoji"),
        (
            ["--world", "emoji", "--parts", "reader"],
            "unknown part 'reader'; accepted: reconstruction, told, ",
        ),
        (["--world", "emoji", "--strengths", "2"], "strengths"),
        (["--world", "emoji", "--data", "nowhere"], "there is no data set at 'nowhere'"),
        (["--world", "emoji", "--minutes", "0"], "minutes"),
        (["--world", "emoji", "--report", "x", "--parts", "told"], "--parts does nothing for --report"),
        (["--world", "emoji", "--prompts", "x", "--out", "y"], "--out does nothing for --prompts"),
        (["--world", "emoji", "--pictures", "x", "--thetas", "1"], "--thetas does nothing for --pictures"),
        (["--world", "emoji", "--pictures", "x", "--bundle", "y"], "--bundle does nothing for --pictures"),
        (["--world", "emoji", "--pictures", "x", "--steps", "9"], "--steps does nothing for --pictures"),
        (["--world", "emoji", "--prompts", "x", "--seed", "1"], "--seed does nothing for --prompts"),
        (["--world", "emoji", "--report", "x", "--count", "9"], "--count does nothing for --report"),
        (["--world", "emoji", "--report", "x", "--fast"], "--fast does nothing for --report"),
        (
            ["--world", "emoji", "--prompts", "x", "--parts", "reconstruction"],
            "unknown part 'reconstruction'",
        ),
    ],
)
def test_what_is_not_taken_is_said(options, message, capsys):
    assert called("evaluate", *options) == 2
    assert message in capsys.readouterr().err
