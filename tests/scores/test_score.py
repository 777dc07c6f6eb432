"""`mvader score` whole, on small random networks: what it gives, keeps, goes on from and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import judges
import numpy as np
import PIL.Image
import pytest

from mvader_jax.cli.main import main
from mvader_jax.errors import UserError
from mvader_jax.parallel.mesh import make_mesh, parse_mesh
from mvader_jax.sampling.placement import Placement
from mvader_jax.scores import features
from mvader_jax.scores.formulas import cmmd, frechet, kid, moments
from mvader_jax.scores.networks import load_judge, open_network, pictures_in
from mvader_jax.scores.preprocess import RESIZES
from mvader_jax.scores.score import Scoring, score

ALL = ("fid", "kid", "cmmd", "clip", "clip-image")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both networks, pictures, a reference of the same names, and prompts."""
    folder = tmp_path_factory.mktemp("scores")
    judges.save_inception(folder / "inception")
    judges.save_clip(folder / "clip")
    judges.save_pictures(folder / "pictures", 7)
    judges.save_pictures(folder / "real", 9, seed=1, level=90)
    lines = [
        {"id": f"{i:03d}", "prompt": [{"text": f"a red circle {i}"}, {"image": f"real/{i % 3:03d}.png"}]}
        for i in range(7)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(at: Path, *metrics: str, **changes: Any) -> Scoring:
    usual = {
        "reference": at / "real",
        "batch": 4,
        "inception": str(at / "inception"),
        "clip": str(at / "clip"),
    }
    return Scoring(metrics=metrics, **{**usual, **changes})


def test_every_score_is_its_formula_of_the_features(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", str(at / "pictures"), "--reference", str(at / "real"), "--metrics", ",".join(ALL)]
    arguments += ["--inception", str(at / "inception"), "--clip", str(at / "clip"), "--batch", "4", "--json"]
    arguments += [
        "--prompts",
        str(at / "prompts.jsonl"),
        "--bootstrap",
        "20",
        "--keep",
        str(tmp_path / "kept"),
    ]
    arguments += ["--save-stats", str(tmp_path / "own.npz")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["pictures"], found["reference"]) == (7, 9)
    rows = {path.name.split("-")[0]: [] for path in (tmp_path / "kept").glob("*.f32")}
    for path in (tmp_path / "kept").glob("*.f32"):
        name = path.name.split("-")[0]
        rows[name].append(np.fromfile(path, np.float32).reshape(-1, {"inception": 128, "clip": 24}[name]))
    own, real = sorted(rows["inception"], key=len)
    scores = found["scores"]
    assert (len(own), len(real)) == (7, 9)
    assert scores["fid"]["value"] == pytest.approx(frechet(moments(own), moments(real)), rel=1e-9)
    shown, seen, there = sorted(rows["clip"], key=len)
    assert (len(shown), len(seen), len(there)) == (3, 7, 9)
    assert scores["cmmd"]["value"] == pytest.approx(cmmd(seen, there)[0], rel=1e-9)
    cosines = (seen.astype(float) * shown[np.arange(7) % 3]).sum(axis=1).clip(0)
    assert scores["clip-image"]["value"] == pytest.approx(100 * cosines.mean(), rel=1e-9)
    assert 0 <= scores["clip"]["value"] <= 100
    assert scores["kid"]["std"] >= 0
    for name in set(ALL) - {"kid"}:
        low, high = scores[name]["interval"]
        assert low <= scores[name]["value"] <= high
    # Too few pictures are said, in the numbers and to the person.
    assert any("fid of 7 pictures is too high" in note for note in found["notes"])
    assert "kid's subsets are of all 7 pictures" in told.err
    # "a red circle 0" fits into the 12 tokens of this CLIP.
    assert not any("texts are longer" in note for note in found["notes"])
    # The file of statistics stands for the folder.
    statistics = settings(at, "fid", reference=tmp_path / "own.npz")
    assert score(at / "real", statistics)["scores"]["fid"]["value"] == pytest.approx(
        frechet(moments(real), moments(own)), rel=1e-6
    )
    with np.load(tmp_path / "own.npz") as held:
        np.testing.assert_allclose(held["sigma"], np.cov(own.astype(float), rowvar=False), atol=1e-12)


def test_a_file_that_clean_fid_wrote(at: Path, tmp_path: Path) -> None:
    """As its make_custom_stats writes one: of features in float32, the mean as it comes and np.cov, compressed."""
    bundle = load_judge("inception", str(at / "inception"), None)
    network = open_network("inception", bundle, None, "clean-fid")
    own, real = (
        np.concatenate(list(features.embedded(network, pictures_in(at / folder), 4)))
        for folder in ("pictures", "real")
    )
    file = tmp_path / "real_clean_custom_na.npz"
    np.savez_compressed(file, mu=np.mean(real, axis=0), sigma=np.cov(real, rowvar=False))
    found = score(at / "pictures", settings(at, "fid", reference=file, resize="clean-fid"))
    assert found["scores"]["fid"]["value"] == pytest.approx(frechet(moments(own), moments(real)), rel=1e-5)


def test_a_mesh_gives_the_same_numbers(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches that do not divide too: they are filled up, so that every device has its own rows."""
    chosen = settings(at, "fid", "cmmd", batch=5)
    alone = score(at / "pictures", chosen)
    placed: list[Any] = []
    place = Placement.placed
    monkeypatch.setattr(Placement, "placed", lambda *of: placed.append(place(*of)) or placed[-1])
    meshed = score(at / "pictures", chosen, mesh=make_mesh(parse_mesh("data=4,fsdp=2")))
    assert {one.shape[0] for one in placed} == {8}
    assert {shard.data.shape[0] for one in placed for shard in one.addressable_shards} == {1}
    for name in ("fid", "cmmd"):
        assert meshed["scores"][name]["value"] == pytest.approx(alone["scores"][name]["value"], rel=1e-3)


def test_a_stopped_run_goes_on(at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(at, "cmmd", keep=tmp_path / "kept", batch=2)
    whole = score(at / "pictures", settings(at, "cmmd", batch=2))
    told: list[tuple[str, int, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(at / "pictures", chosen, progress=stop)
    (kept,) = (tmp_path / "kept").glob("clip-*.f32")
    with kept.open("ab") as file:
        file.write(b"half a row")
    told.clear()
    again = score(at / "pictures", chosen, progress=lambda *what: told.append(what))
    assert told[0] == ("pictures, clip", 4, 7)
    assert again["scores"] == whole["scores"]

    def nothing(*_: Any) -> Any:
        raise AssertionError("every picture was looked at before")
        yield

    monkeypatch.setattr(features, "embedded", lambda network, pictures, batch: nothing() if pictures else [])
    assert score(at / "pictures", chosen)["scores"] == whole["scores"]


def test_another_picture_or_way_to_read_it_is_not_taken_for_the_old_one(at: Path, tmp_path: Path) -> None:
    folder = judges.save_pictures(tmp_path / "mine", 3)
    chosen = settings(at, "cmmd", keep=tmp_path / "kept")
    before = score(folder, chosen)["scores"]["cmmd"]["value"]
    assert score(folder, chosen)["scores"]["cmmd"]["value"] == before
    PIL.Image.new("RGB", (40, 30), "white").save(folder / "001.png")
    assert score(folder, chosen)["scores"]["cmmd"]["value"] != before
    bundle, picture = load_judge("inception", str(at / "inception"), None), folder / "002.png"
    ways = [open_network("inception", bundle, None, name) for name in RESIZES]
    assert len({str(way.about) for way in ways}) == len({way.read(picture).tobytes() for way in ways}) == 3


def test_texts_come_from_what_drew_the_pictures(at: Path, tmp_path: Path) -> None:
    folder = judges.save_pictures(tmp_path / "mine", 2)
    rows = [{"file": "000.png", "prompt": ["a red circle", "nope.png@0.3"]}]
    rows += [{"file": "001.png", "prompt": [{"text": "a blue square"}]}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = [{"id": "000", "prompt": ["a red circle"]}, {"id": "001", "prompt": ["a blue square"]}]
    lines = [{**row, "prompt": [{"text": row["prompt"][0]}]} for row in written]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows[1]["prompt"][0]["text"] += " on a ground that has no end, and no beginning either"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = score(folder, settings(at, "clip", reference=None))
    assert long["notes"] == ["1 of 2 texts are longer than CLIP reads, and cut"]
    rows[1]["prompt"][0]["text"] = "a blue square"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = score(folder, settings(at, "clip", reference=None))
    assert manifest["notes"] == []
    named = score(folder, settings(at, "clip", reference=None, prompts=tmp_path / "p.jsonl"))
    assert manifest["scores"] == named["scores"]


@pytest.mark.parametrize(
    ("metrics", "changes", "said"),
    [
        (["fid", "fid"], {}, "the metrics name 'fid' twice; name it once"),
        (["fidd"], {}, "unknown metric 'fidd'; accepted: fid, kid, cmmd, clip, clip-image"),
        ([], {}, "no metric is named"),
        (["fid"], {"reference": None}, "fid compares with other pictures; name them with --reference FOLDER or"),
        (["cmmd"], {"reference": "stats.npz"}, "cmmd needs the reference's pictures"),
        (["fid"], {"inception": None}, "mvader convert pt_inception-2015-12-05-6726825d.pth bundles/inception"),
        (["clip"], {"clip": None}, "name a bundle with --clip"),
        (["cmmd"], {"clip": "inception"}, "has no text_encoder"),
        (["clip"], {}, "tells nothing of 7 of 7 pictures; the first is 000.png; name them with --prompts"),
        (["clip"], {"prompts": "wordless.jsonl"}, "asked for without any; the first is 000.png"),
        (["clip-image"], {"reference": None}, "clip-image compares with pictures: name those of the same names"),
        (["clip-image"], {"reference": "one"}, "has no picture of the name of 6 of 7; the first is 001.png"),
        (["fid"], {"reference": "one"}, "holds one picture; 2 are the least"),
        (["fid"], {"reference": "none"}, "is no folder of pictures"),
        (["fid"], {"reference": "none.npz"}, "do not exist"),
        (["fid"], {"reference": "text.npz"}, "is no .npz of statistics that can be read"),
        (["fid"], {"reference": "array.npz"}, "holds one array without a name; statistics of FID are mu and sigma"),
        (["fid"], {"reference": "complex.npz"}, "has mu of complex128, where real numbers are expected"),
        (["fid"], {"save_stats": "own.txt"}, "name a file that ends in .npz, as --reference knows it"),
        (["fid"], {"reference": "other.npz"}, "holds x; statistics of FID are mu and sigma"),
        (["fid"], {"reference": "small.npz"}, "are of 3 features, and this Inception gives 128"),
        (["fid"], {"reference": "crooked.npz"}, "mu of \\[3\\] and sigma of \\[2, 2\\]"),
        (["fid"], {"resize": "torch"}, "unknown resize 'torch'; accepted: pytorch-fid, tensorflow, clean-fid"),
        (["fid"], {"save_stats": "text.npz"}, "exists already and holds no statistics"),
        (["fid"], {"batch": 0}, "batch is 0"),
        (["fid"], {"bootstrap": -1}, "bootstrap is -1"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    at: Path, tmp_path: Path, metrics: list[str], changes: dict[str, Any], said: str
) -> None:
    (tmp_path / "text.npz").write_text("words")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "complex.npz", mu=np.zeros(128, complex), sigma=np.eye(128))
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "crooked.npz", mu=np.zeros(3), sigma=np.eye(2))
    judges.save_pictures(tmp_path / "one", 1)
    lines = [{"id": f"{i:03d}", "prompt": [{"image": f"{at}/real/000.png"}]} for i in range(7)]
    (tmp_path / "wordless.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("reference", "prompts", "save_stats"):
        if isinstance(changes.get(name), str):
            changes = {**changes, name: tmp_path / changes[name]}
    if changes.get("clip") == "inception":
        changes = {"clip": str(at / "inception")}
    with pytest.raises(UserError, match=said):
        score(at / "pictures", settings(at, *metrics, **changes))


def test_a_damaged_picture_is_named_and_what_was_before_it_is_kept(at: Path, tmp_path: Path) -> None:
    folder = judges.save_pictures(tmp_path / "mine", 5)
    (folder / "003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"003.png' is not an image that Pillow can read"):
        score(folder, settings(at, "cmmd", keep=tmp_path / "kept", batch=2))
    (kept,) = (tmp_path / "kept").glob("*.f32")
    assert kept.stat().st_size == 2 * 24 * 4


def test_a_clip_without_a_tokenizer_says_how_to_get_one(at: Path, tmp_path: Path) -> None:
    mute = judges.save_clip(tmp_path / "clip", tokenizer=False)
    with pytest.raises(UserError, match="convert it again with --tokenizer FOLDER"):
        score(
            at / "pictures",
            settings(at, "clip", prompts=at / "prompts.jsonl", clip=str(mute), reference=None),
        )


def test_kid_is_the_same_for_the_same_seed(at: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 40, 6))
    once = kid(a, b, np.random.default_rng(3), subsets=4, size=9)
    assert once == kid(a, b, np.random.default_rng(3), subsets=4, size=9)
    assert once != kid(a, b, np.random.default_rng(4), subsets=4, size=9)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--metrics", "kid", "--bootstrap", "5"],
        ["--metrics", "fid", "--seed", "5"],
        ["--metrics", "fid", "--clip", "x"],
        ["--metrics", "cmmd", "--resize", "clean-fid"],
        ["--metrics", "cmmd", "--prompts", "x.jsonl"],
        ["--metrics", "clip", "--reference", "x"],
        ["--metrics", "clip-image", "--prompts", "x.jsonl", "--reference", "x"],
    ],
)
def test_what_does_nothing_for_a_score_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = arguments[1]
    needed = {"fid": "inception", "kid": "inception"}.get(name, "clip")
    given = ["--reference", "real"] * (name in ("fid", "kid", "cmmd")) + [f"--{needed}", "x"]
    with pytest.raises(SystemExit) as stopped:
        main(["score", "pictures", *given, *arguments])
    assert stopped.value.code == 2
    assert (
        f"mvader: {arguments[-2]} does nothing for --metrics {name}; leave it out\n"
        in capsys.readouterr().err
    )
