from __future__ import annotations

import collections
import json
import os

import img2dataset_like as like
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import FolderPart, ParquetPart, TarPart, find_shards
from mvader_jax.data.building.plan import check_columns, repeated_keys
from mvader_jax.data.building.run import build
from mvader_jax.data.building.schema import REPORT
from mvader_jax.errors import UserError

EVERY_KIND = {5 * n + 1: kind for n, kind in enumerate(like.DAMAGE)}
#: Each of the 22 kinds once among 120 samples, and one of them is there twice.
PAPER = FilterConfig.paper()


def records(path):
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(str(path)).as_data_source(split="train", decoders=decoders))


def run(source, out, **options):
    return build(find_shards(source), out, "laion_aesthetics", PAPER, **options)


@pytest.mark.parametrize("layout", ["tar", "files", "parquet"])
def test_every_kind_of_damage_is_counted_under_its_reason(tmp_path, layout):
    damage = dict(EVERY_KIND)
    expected = collections.Counter(reason for reason in like.DAMAGE.values() if reason)
    if layout == "files":
        damage = {n: kind for n, kind in damage.items() if kind != "twice"}  # one name, one file
        del expected["key duplicated"]
    if layout == "parquet":
        # The caption is a column of text: it has no bytes that are no UTF-8.
        damage = {n: kind for n, kind in damage.items() if kind != "latin-1 caption"}
        del expected["caption is not UTF-8"]
    made = like.make(tmp_path / "in", damage=damage, layout=layout)
    assert made.rejected == expected
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.rejected == expected
    assert report.read == made.read == report.written + sum(report.rejected.values())
    stored = records(tmp_path / "out")
    assert len(stored) == report.written == made.written
    by_key = {r["key"].decode(): r for r in stored}
    numbers = {kind: n for n, kind in damage.items()}
    rotated = by_key[f"{numbers['rotated']:09d}"]
    assert (rotated["width"], rotated["height"]) == (37, 50)
    plain = by_key["000000000"]
    assert (plain["width"], plain["height"], plain["original_width"]) == (50, 37, 1024)
    assert plain["caption"].decode() == "a picture of number 0, größer"
    assert 5 < plain["aesthetic"] < 7.01
    assert np.isnan(plain["similarity"])
    for kind in ("cmyk", "grey", "16 bit", "animated gif", "animated webp", "rotated"):
        assert f"{numbers[kind]:09d}" in by_key
    assert report.examples["image is a web page"] == [f"{numbers['web page']:09d}"]


def test_pictures_are_stored_as_the_bytes_they_were(tmp_path):
    like.make(tmp_path / "in", shards=1, per_shard=4, layout="files")
    run(tmp_path / "in", tmp_path / "out")
    for record in records(tmp_path / "out"):
        assert record["image"] == (tmp_path / "in" / "00000" / f"{record['key'].decode()}.jpg").read_bytes()


def test_metadata_is_asked_before_the_picture_is_read(tmp_path, monkeypatch):
    like.make(tmp_path / "in", shards=1, per_shard=6, layout="files", damage={2: "low score", 4: "watermark"})
    read = []
    plain = like.pathlib.Path.read_bytes
    monkeypatch.setattr(
        like.pathlib.Path, "read_bytes", lambda self: (read.append(self.name), plain(self))[1]
    )
    run(tmp_path / "in", tmp_path / "out")
    assert {name for name in read if name.endswith(".jpg")} == {f"00000000{n}.jpg" for n in (0, 1, 3, 5)}


def test_cut_tar_loses_its_tail_and_says_so(tmp_path):
    made = like.make(tmp_path / "in", shards=2, per_shard=20)
    tar = tmp_path / "in" / "00001.tar"
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size * 55 // 100)
    report = run(tmp_path / "in", tmp_path / "out")
    lost = report.rejected["lost in a damaged shard"]
    assert 7 <= lost <= 10
    assert report.read == made.read == 40
    assert report.written == 40 - lost
    assert any("00001.tar: the shard is cut or damaged" in problem for problem in report.problems)


def test_tar_with_a_broken_header_is_seen_as_damaged(tmp_path):
    like.make(tmp_path / "in", shards=2, per_shard=10)
    tar = tmp_path / "in" / "00000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"000000006.jpg")
    data[at : at + 512] = os.urandom(512)
    tar.write_bytes(data)
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.rejected == {"lost in a damaged shard": 4}
    assert "no valid header" in report.problems[0]


def test_shard_without_parquet_uses_its_own_json(tmp_path):
    made = like.make(tmp_path / "in", damage={3: "low score", 50: "nan score"})
    (tmp_path / "in" / "00000.parquet").unlink()
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.rejected == made.rejected
    assert len(report.problems) == 1
    assert "no readable parquet" in report.problems[0]


def test_cut_parquet_beside_a_tar_is_a_problem_and_no_end(tmp_path):
    like.make(tmp_path / "in", shards=2, per_shard=5)
    table = tmp_path / "in" / "00001.parquet"
    table.write_bytes(table.read_bytes()[:300])
    report = run(tmp_path / "in", tmp_path / "out")
    assert (report.read, report.written) == (10, 10)
    assert any("cannot be read as parquet" in problem for problem in report.problems)


def test_damaged_parquet_of_pictures_loses_the_rest(tmp_path):
    made = like.make(tmp_path / "in", shards=1, per_shard=200, layout="parquet")
    table = tmp_path / "in" / "00000.parquet"
    rows = pyarrow.parquet.read_table(table)
    pyarrow.parquet.write_table(rows, table, row_group_size=40, compression="none", data_page_size=4096)
    data = bytearray(table.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20000] = bytes(20000)
    table.write_bytes(data)
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.read == made.read == 200
    assert 0 < report.written < 200
    assert report.written + sum(report.rejected.values()) == 200


def test_keys_of_two_shards_are_counted_as_duplicates(tmp_path):
    like.make(tmp_path / "in", shards=2, per_shard=10)
    for suffix in ("tar", "parquet"):
        (tmp_path / "in" / f"00002.{suffix}").write_bytes((tmp_path / "in" / f"00000.{suffix}").read_bytes())
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.rejected == {"key duplicated": 10}
    assert [len(keys) for keys in repeated_keys(find_shards(tmp_path / "in"))] == [0, 0, 10]


def test_a_missing_column_is_an_error_before_anything_is_read(tmp_path):
    like.make(tmp_path / "in")
    for table in (tmp_path / "in").glob("*.parquet"):
        rows = pyarrow.parquet.read_table(table)
        pyarrow.parquet.write_table(rows.drop_columns(["pwatermark"]), table)
    with pytest.raises(
        UserError, match=r"'00000' has no metadata column .* watermark \(pwatermark, watermark\)"
    ):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="punsafe"):
        check_columns([ParquetPart(str(tmp_path / "nothing.parquet"))], FilterConfig(max_punsafe=0.1))


def test_columns_match_in_any_case_and_spelling(tmp_path):
    like.make(tmp_path / "in", shards=1, per_shard=10, damage={2: "low score"})
    table = tmp_path / "in" / "00000.parquet"
    rows = pyarrow.parquet.read_table(table)
    names = {"AESTHETIC_SCORE": "aesthetic", "pwatermark": "PWATERMARK", "caption": "TEXT"}
    pyarrow.parquet.write_table(rows.rename_columns([names.get(n, n) for n in rows.column_names]), table)
    assert run(tmp_path / "in", tmp_path / "out").rejected == {"aesthetic score <= 5": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_build_goes_on_and_ends_the_same(tmp_path, workers, monkeypatch):
    made = like.make(tmp_path / "in", shards=5, per_shard=12, damage={3: "truncated", 30: "web page"})
    whole = run(tmp_path / "in", tmp_path / "whole")

    def stop(read):
        if read >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", on_progress=stop)
    done = sorted(p.name for p in (tmp_path / "out").glob("*.array_record*"))
    assert 1 <= len(done) <= 4
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    with pytest.raises(UserError, match="unfinished build of other parts or with other filters"):
        build(find_shards(tmp_path / "in"), tmp_path / "out", "laion_aesthetics", FilterConfig())
    seen = []
    report = run(tmp_path / "in", tmp_path / "out", workers=workers, on_progress=seen.append)
    assert seen[0] == 12 * len(done)
    assert report.to_json() == whole.to_json()
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == before
    assert [r["key"] for r in records(tmp_path / "out")] == [r["key"] for r in records(tmp_path / "whole")]
    assert not (tmp_path / "out" / "unfinished").exists()
    assert not list((tmp_path / "out").glob(".*"))
    assert report.rejected == made.rejected
    # A finished one is left alone.
    assert run(tmp_path / "in", tmp_path / "out").to_json() == whole.to_json()
    assert json.loads((tmp_path / "out" / REPORT).read_text())["report"]["read"] == 60


def test_nothing_kept_or_nothing_there_is_an_error(tmp_path):
    like.make(tmp_path / "in", shards=1, per_shard=3, damage=dict.fromkeys(range(3), "low score"))
    with pytest.raises(UserError, match=r"no record was kept of 3 \(aesthetic score <= 5: 3\)"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.tar, no \.parquet"):
        find_shards(tmp_path / "empty")
    with pytest.raises(UserError, match="is no folder"):
        find_shards(tmp_path / "missing")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    like.make(tmp_path / "in", shards=1, per_shard=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path / "in", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "other")
    with pytest.raises(UserError, match="a finished build of other parts"):
        build(find_shards(tmp_path / "in"), tmp_path / "other", "laion_aesthetics", FilterConfig())


def test_layouts_are_recognised(tmp_path):
    like.make(tmp_path, shards=1, per_shard=2)
    like.write_shard(tmp_path, "00001", [], "files", tables=False)
    like.make(tmp_path / "p", shards=1, per_shard=2, layout="parquet")
    assert [type(part) for part in find_shards(tmp_path)] == [TarPart, FolderPart]
    assert [type(part) for part in find_shards(tmp_path / "p")] == [ParquetPart]
