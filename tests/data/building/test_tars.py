"""Tars: as webdataset itself reads them, and where they are damaged or made by somebody else."""

from __future__ import annotations

import collections
import gzip
import io
import itertools
import json
import tarfile

import img2dataset_like as like
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset.tariterators

from mvader_jax.data.building import tars
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.sources.stored import Stored

PICTURES = [like.jpeg(np.random.default_rng(n), 20, 16) for n in range(8)]


def member(name, data=b"", kind=tarfile.REGTYPE, link="", **pax):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def write(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(name, number, text=None):
    return [member(f"{name}.jpg", PICTURES[number]), member(f"{name}.txt", (text or f"of {name}").encode())]


def made(root, out):
    """({key: caption}, report) of a build of the shards in a folder."""
    report = build(find_shards(root), out, "laion_aesthetics", FilterConfig())
    source = Stored(str(out), None)
    found = {source.row(i)["key"].decode(): source.captions(i)[0] for i in range(len(source))}
    assert report.read == report.written + sum(report.rejected.values())
    assert len(found) == len(source) == report.written
    return found, report


def read(path):
    cut = []
    return [
        (g.key, {s: content() for s, content in g.members.items()}) for g in tars.groups(str(path), cut)
    ], cut


NAMES = ["0.jpg", "0.txt", "cats/0.jpg", "cats/0.txt", "v1.0/a/b.seg.png", "v1.0/a/b.TXT", "README", ".hidden",
         "__meta__.json", "deep/a.b.c", "z."]  # fmt: skip


def test_samples_are_those_that_webdataset_finds(tmp_path):
    path = write(tmp_path / "a.tar", [member(name, name.encode()) for name in NAMES])
    with path.open("rb") as file:
        theirs = webdataset.tariterators.group_by_keys(
            {**found, "__url__": ""} for found in webdataset.tariterators.tar_file_iterator(file)
        )
        expected = [
            (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in list(theirs)
        ]
    assert read(path) == (expected, [])
    assert len(expected) == 6


def test_keys_in_folders_are_other_keys(tmp_path):
    (tmp_path / "in").mkdir()
    members = [*pair("cats/0", 0), *pair("dogs/0", 1), *pair("./birds/0", 2)]
    write(tmp_path / "in" / "a.tar", members)
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert found == {"a/cats/0": "of cats/0", "a/dogs/0": "of dogs/0", "a/birds/0": "of ./birds/0"}
    assert not report.rejected


def test_shards_count_their_own_keys_where_nobody_gave_them_others(tmp_path):
    (tmp_path / "in").mkdir()
    for shard, name in enumerate(("a", "b", "c", "d")):
        members = [pair(str(n), (3 * shard + n) % 8, f"{shard} {n}") for n in range(3)]
        write(tmp_path / "in" / f"{name}.tar", itertools.chain(*members))
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert (len(found), report.rejected) == (12, {})
    assert found["c/1"] == "2 1"


def test_keys_of_img2datasets_json_are_those_of_the_whole_set(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        members = [*pair("7", 0), member("7.json", json.dumps({"key": "7"}).encode())]
        write(tmp_path / "in" / f"{name}.tar", members)
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert (list(found), report.rejected) == (["7"], {"key duplicated": 1})


def test_a_table_knows_its_samples_in_any_folder_of_the_shard(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "0.tar", [*pair("0/000", 0), *pair("0/001", 1)])
    rows = [{"key": f"00{n}", "width": 600, "height": 500 + n, "status": "success"} for n in range(2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "0.parquet")
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert (list(found), report.rejected) == (["000", "001"], {})
    assert Stored(str(tmp_path / "out"), None).row(1)["original_height"] == 501


def test_members_of_a_sample_may_stand_apart(tmp_path):
    (tmp_path / "in").mkdir()
    both = [pair(str(n), n) for n in range(4)]
    members = [*(jpg for jpg, _ in both), *(txt for _, txt in reversed(both)), *both[1]]
    write(tmp_path / "in" / "a.tar", members)
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert found == {f"a/{n}": f"of {n}" for n in range(4)}
    assert report.rejected == {"key duplicated": 1}


def test_links_are_followed_within_the_shard(tmp_path):
    (tmp_path / "in").mkdir()
    members = [
        *pair("x/0", 0),
        member("x/1.jpg", kind=tarfile.LNKTYPE, link="x/0.jpg"),
        member("x/1.txt", b"hard"),
        member("y/2.jpg", kind=tarfile.SYMTYPE, link="../x/1.jpg"),
        member("y/2.txt", b"soft"),
        member("y/3.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("y/3.txt", b"out"),
        member("y/4.jpg", kind=tarfile.SYMTYPE, link="4.jpg"),
        member("y/4.txt", b"of itself"),
    ]
    write(tmp_path / "in" / "a.tar", members)
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert found == {"a/x/0": "of x/0", "a/x/1": "hard", "a/y/2": "soft"}
    assert report.rejected == {"link to what the shard does not hold": 2}


def test_names_that_are_no_unicode_and_odd_headers(tmp_path):
    (tmp_path / "in").mkdir()
    latin = [*pair("caf\udce9", 0, "latin"), *pair("plain", 1)]
    write(
        tmp_path / "in" / "a.tar",
        latin,
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    odd = member("b.jpg", PICTURES[2], comment="x", mtime="nonsense", size=str(len(PICTURES[2])))
    path = write(tmp_path / "in" / "b.tar", [odd, member("b.txt", b"odd")], format=tarfile.PAX_FORMAT)
    path.write_bytes(path.read_bytes().replace(b"comment=x", b"comment=\xff"))
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert found == {"a/caf\\udce9": "latin", "a/plain": "of plain", "b/b": "odd"}
    assert not report.rejected


@pytest.mark.parametrize("kind", ["tar.gz", "tgz", "tar.xz"])
@pytest.mark.parametrize("cut", [False, True])
def test_compressed_shards(tmp_path, kind, cut):
    (tmp_path / "in").mkdir()
    members = list(itertools.chain(*(pair(str(n), n) for n in range(6))))
    path = tmp_path / "in" / f"a.{kind}"
    mode = "w:xz" if kind.endswith("xz") else "w:gz"
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    if cut and kind == "tar.xz":
        return  # one block: nothing of it can be had
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert 2 <= len(found) < 6 if cut else len(found) == 6
    assert any("cut or damaged" in problem for problem in report.problems) == cut


def test_a_damaged_stream_in_a_gz_is_no_traceback(tmp_path):
    (tmp_path / "in").mkdir()
    plain = write(tmp_path / "a.tar", itertools.chain(*(pair(str(n), n) for n in range(6))))
    data = bytearray(gzip.compress(plain.read_bytes()))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "in" / "a.tar.gz").write_bytes(data)
    found, report = made(tmp_path / "in", tmp_path / "out")
    assert 1 <= len(found) < 6
    assert any("cut or damaged" in problem for problem in report.problems)


def test_sizes_that_cannot_be(tmp_path):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.tar", [*pair("0", 0), *pair("1", 1)])
    data = bytearray(path.read_bytes())
    at = data.index(b"1.jpg")
    for size in (b"\x80" + (1 << 60).to_bytes(11, "big"), b"\xff" + b"\xff" * 10 + b"\x00"):
        data[at + 124 : at + 136] = size
        header = data[at : at + 512]
        header[148:156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\x00 " % sum(header)
        path.write_bytes(data)
        groups, cut = [], []
        for group in tars.groups(str(path), cut):
            groups.append(group.key)
        assert groups[0] == "0" and cut
        found, _ = made(tmp_path / "in", tmp_path / f"out-{size[0]}")
        assert collections.Counter(found) == {"a/0": "of 0"} or list(found) == ["a/0"]
