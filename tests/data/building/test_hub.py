"""Data sets of the hub, in parquet and webdataset form, one shard at a time; the same from a folder of shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import img2dataset_like as like
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hub_fixture import hub as hub
from hub_server import Hub, Repository

from mvader_jax.cli.main import main
from mvader_jax.data.building import sharded
from mvader_jax.data.sources.stored import Stored

PICTURES = [like.jpeg(np.random.default_rng(n), 20, 16) for n in range(8)]
#: As `datasets` writes a column of pictures.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(captions: list[str], image: str = "image", text: str = "text", **more: list[object]) -> bytes:
    pictures = pa.array([{"bytes": PICTURES[n], "path": f"{n}.jpg"} for n in range(len(captions))], IMAGE)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({image: pictures, text: captions, **more}), file)
    return file.getvalue()


def tar(captions: list[str], ending: str = "txt", **more: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number, caption in enumerate(captions):
            text = caption if ending == "txt" else json.dumps({ending: caption, "width": 20, **more})
            for name, data in (
                ("jpg", PICTURES[number]),
                (ending if ending == "txt" else "json", text.encode()),
            ):
                info = tarfile.TarInfo(f"{number}.{name}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def build(source: str, out: Path, *more: object) -> int:
    return run("data", "build", "image_captions", source, out, "--workers", 1, *more)


def held(out: Path) -> dict[str, str]:
    source = Stored(str(out), None)
    return {source.row(i)["key"].decode(): source.captions(i)[0] for i in range(len(source))}


SHARDS = {
    "data/train-00000-of-00002.parquet": parquet(["a cat", "a dog"]),
    "data/train-00001-of-00002.parquet": parquet(["a cow"]),
    "data/test-00000-of-00001.parquet": parquet(["held out"]),
    "README.md": b"x",
}


def test_parquet_of_the_hub(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.datasets["org/animals"] = Repository(SHARDS)
    assert build("hf:org/animals", tmp_path / "out") == 0
    expected = {
        "data/train-00000-of-00002/0": "a cat",
        "data/train-00000-of-00002/1": "a dog",
        "data/train-00001-of-00002/0": "a cow",
    }
    assert held(tmp_path / "out") == expected
    said = capsys.readouterr()
    assert "for training: 2 of the 3 shards of hf:datasets/org/animals" in said.err
    assert Stored(str(tmp_path / "out"), None).row(0)["image"] == PICTURES[0]
    # Nothing of the shards is left, neither in the folder nor in the cache.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "columns.npy", "dataset_info.json", "features.json",
        "image_captions-train.array_record-00000-of-00002", "image_captions-train.array_record-00001-of-00002",
        "report.json",
    ]  # fmt: skip
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    # A finished set says so; only the first shard is looked into for it.
    hub.asked.clear()
    assert build("hf:datasets/org/animals", tmp_path / "out") == 0
    assert f"{tmp_path / 'out'} is already built, from the same files" in capsys.readouterr().out
    hub.datasets["org/animals"].commit({**SHARDS, "README.md": b"mended"})
    assert build("hf:org/animals", tmp_path / "out") == 0
    assert "is already built" in capsys.readouterr().out
    assert set(hub.fetched()) <= {"data/train-00000-of-00002.parquet"}  # its columns
    hub.datasets["org/animals"].commit({**SHARDS, "data/train-00001-of-00002.parquet": parquet(["a pig"])})
    assert build("hf:org/animals", tmp_path / "out") == 2
    assert "holds a finished build of another source, or its files have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "flags", "captions"),
    [
        ({"a.tar": tar(["a cat", "a dog"])}, (), ["a cat", "a dog"]),
        ({"a.tar": tar(["a cat"], "caption")}, (), ["a cat"]),
        ({"a.tar": tar(["a cat"], "told", other="x")}, ("--caption-column", "told"), ["a cat"]),
        ({"a.parquet": parquet(["a cat"], "picture", "told")}, (), ["a cat"]),
        (
            {"a.parquet": parquet(["a cat"], "before", "told", alt=["x"], url=["y"])},
            ("--image-column", "before", "--caption-column", "alt"),
            ["x"],
        ),
    ],
    ids=["txt", "json", "json by flag", "only ones of their kind", "parquet by flag"],
)
def test_what_holds_pictures_and_captions(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], flags: tuple[str, ...], captions: list[str]
) -> None:
    """From the hub, from a folder of the same files, and from one of them."""
    hub.datasets["org/set"] = Repository(files)
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    places = ["hf:org/set", str(tmp_path / "in"), str(tmp_path / "in" / next(iter(files)))]
    for number, place in enumerate(places):
        assert build(place, tmp_path / str(number), *flags) == 0
        assert list(held(tmp_path / str(number)).values()) == captions


@pytest.mark.parametrize(
    ("files", "source", "flags", "sentence"),
    [
        (
            {"a.parquet": parquet(["a"], "image", "told", alt=["x"])},
            "hf:org/set",
            (),
            "hf:datasets/org/set may have its captions in told, alt: name one with --caption-column",
        ),
        (
            {"a.parquet": parquet(["a"], text="told")},
            "hf:org/set",
            ("--image-column", "told"),
            "hf:datasets/org/set has no images under 'told' (--image-column); it has image, told",
        ),
        ({"a.tar": tar(["a"], "n0")}, "hf:org/set", ("--image-column", "png"), "has no images under 'png'"),
        (
            {"a.tar": tar(["a"], "first", second="b")},
            "hf:org/set",
            (),
            "may have its captions in first, second: name one with --caption-column",
        ),
        (
            {"en/train-0.parquet": parquet(["a"]), "de/train-0.parquet": parquet(["b"])},
            "hf:org/set",
            (),
            "has shards in several folders (de, en): name those that are meant, as in hf:datasets/org/set/en/*",
        ),
        (
            {"a.parquet": parquet(["a"]), "b.tar": tar(["b"])},
            "hf:org/set",
            (),
            "holds .parquet files and tars: name those that are meant, as in hf:datasets/org/set/*.parquet",
        ),
        (
            {"metadata.csv": b"x", "0.jpg": b"x"},
            "hf:org/set",
            (),
            "holds no .parquet files and no tars; the hub keeps most data sets as parquet too: try "
            "hf:datasets/org/set@refs/convert/parquet",
        ),
        ({"a.parquet": b"no parquet"}, "hf:org/set", (), "a.parquet@"),
        ({}, "hf:org/other", (), "the hub has no hf:datasets/org/other that is open to you"),
    ],
)
def test_what_is_not_clear_is_one_sentence(
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, bytes],
    source: str,
    flags: tuple[str, ...],
    sentence: str,
) -> None:
    hub.datasets["org/set"] = Repository(files)
    assert build(source, tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mvader: ") and sentence in said
    assert not (tmp_path / "out").exists()


def test_patterns_and_revisions_name_shards(hub: Hub, tmp_path: Path) -> None:
    files = {"en/train-0.parquet": parquet(["a cat"]), "de/train-0.parquet": parquet(["eine Katze"])}
    hub.datasets["org/set"] = Repository({"nothing.csv": b"x"})
    hub.datasets["org/set"].commit(files, "refs/convert/parquet")
    for number, (pattern, captions) in enumerate(
        [("de/*", ["eine Katze"]), ("*.parquet", ["eine Katze", "a cat"]), ("en/train-0.parquet", ["a cat"])]
    ):
        out = tmp_path / str(number)
        assert build(f"hf:org/set/{pattern}@refs/convert/parquet", out) == 0
        assert list(held(out).values()) == captions


def test_damaged_shards_are_counted(hub: Hub, tmp_path: Path) -> None:
    whole = like.make(tmp_path / "rows", shards=1, per_shard=200, layout="parquet")
    table = pyarrow.parquet.read_table(tmp_path / "rows" / "00000.parquet")
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=40, compression="none", data_page_size=4096)
    data = bytearray(file.getvalue())
    data[len(data) // 2 : len(data) // 2 + 20000] = bytes(20000)
    shards = {"0.parquet": b"cut short", "1.parquet": bytes(data), "2.parquet": file.getvalue()}
    hub.datasets["org/set"] = Repository(shards)
    assert build("hf:org/set", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())["report"]
    assert report["read"] == report["written"] + sum(report["rejected"].values()) == 2 * whole.read
    assert report["rejected"]["lost in a damaged shard"] >= 40
    assert report["problems"][0].startswith("hf:datasets/org/set/0.parquet@")
    assert len(report["problems"]) == 2


def test_a_build_that_lost_its_network_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards that are done are not fetched again; at most one is on the disk."""
    files = {f"train-{n}.tar": tar([f"number {n}"]) for n in range(4)}
    hub.datasets["org/set"] = Repository(files)
    most, borrowed = 0, sharded.borrowed

    def watched(shard, room):
        nonlocal most
        if shard.address.file == "train-2.tar":
            hub.status = 503
        most = max(most, len(list(room.rglob("*.tar"))))
        return borrowed(shard, room)

    monkeypatch.setattr(sharded, "borrowed", watched)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    assert build("hf:org/set", tmp_path / "out") == 2
    assert "cannot be reached" in (said := capsys.readouterr().err) and "run it again" in said
    monkeypatch.setattr(sharded, "borrowed", borrowed)
    hub.status = None
    hub.asked.clear()
    assert build("hf:org/set", tmp_path / "out") == 0
    assert [name for name in hub.fetched() if name.endswith(".tar")][-2:] == ["train-2.tar", "train-3.tar"]
    assert list(held(tmp_path / "out").values()) == [f"number {n}" for n in range(4)]
    assert most <= 1


def test_filters_see_the_shards_metadata(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like.make(tmp_path / "in", shards=2, per_shard=4, damage={5: "watermark"})
    files = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    hub.datasets["org/laion"] = Repository(files)
    assert run("data", "build", "laion_aesthetics", "hf:org/laion", tmp_path / "out", "--workers", 1) == 0
    assert "watermark > 0.5" in capsys.readouterr().out
    assert len(held(tmp_path / "out")) == 7
    hub.datasets["org/plain"] = Repository({"a.tar": tar(["a"])})
    assert run("data", "build", "laion_aesthetics", "hf:org/plain", tmp_path / "o2", "--workers", 1) == 2
    assert "column" in capsys.readouterr().err


def test_what_is_no_shard_takes_no_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(PICTURES[0])
    for name, source, sentence in (
        ("image_captions", tmp_path / "in", "belong to parquet files and tars"),
        ("scenes", "4", "scenes takes no columns; accepted for laion_aesthetics and image_captions"),
    ):
        assert run("data", "build", name, source, tmp_path / "out", "--caption-column", "x") == 2
        assert sentence in capsys.readouterr().err
    assert run("data", "build", "emoji_styles", "hf:org/x", tmp_path / "out") == 2
    assert "emoji_styles is not read from the hub" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["gs://bucket/in", "s3://bucket/in", "https://host/in.tar"])
@pytest.mark.parametrize("name", ["laion_aesthetics", "image_captions", "emoji_styles"])
def test_a_url_is_told_apart_from_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, source: str
) -> None:
    assert run("data", "build", name, source, tmp_path / "out") == 2
    assert f"{source!r} is not on this machine's file system: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
