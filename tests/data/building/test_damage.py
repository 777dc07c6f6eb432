"""What a sample says of itself may be anything: it is written, or counted with a reason; the build goes on."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile

import img2dataset_like as like
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mvader_jax.data.building.admit import Rejected, Sample, admit, picture_size
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.parts import FileBytes, ParquetPart, find_shards
from mvader_jax.data.building.report import Report
from mvader_jax.data.building.run import build
from mvader_jax.data.building.shard_writer import ShardWriter
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError

PICTURE = like.jpeg(np.random.default_rng(0), 20, 16)
DEEP = "[" * 100_000 + "]" * 100_000


def made(parts, out):
    """([rows], report) of a build, whose counts add up."""
    report = build(parts, out, "image_captions", FilterConfig())
    assert report.read == report.written + sum(report.rejected.values())
    source = Stored(str(out), None)
    assert len(source) == report.written
    # What is reported can be written, read and shown.
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).to_json() == report.to_json()
    "\n".join([*report.lines(), *(key for keys in report.examples.values() for key in keys)]).encode()
    return [source.row(i) for i in range(len(source))], report


METADATA = {
    "surrogate url": '{"url": "http://x/\\ud83d", "caption": "c"}',
    "surrogate key": '{"key": "a\\udcff", "caption": "c"}',
    "surrogate caption": '{"caption": "c \\ud83d"}',
    "infinite width": '{"original_width": Infinity, "original_height": 5, "caption": "c"}',
    "width of 3e9": '{"original_width": 3e9, "original_height": 3e9, "caption": "c"}',
    "width of 400 digits": f'{{"original_width": {"9" * 400}, "original_height": 5, "caption": "c"}}',
    "width below 0": '{"original_width": -5, "original_height": -5, "caption": "c"}',
    "width in words": '{"original_width": "wide", "original_height": [1], "caption": "c"}',
    "score of 400 digits": f'{{"AESTHETIC_SCORE": {"9" * 400}, "similarity": 1e300, "caption": "c"}}',
    "deep": f'{{"caption": {DEEP}}}',
    "digits": f'{{"caption": "c", "x": {"9" * 5000}}}',
    "list": '{"caption": ["one", 2, null, {"a": 1}, "two"]}',
    "number": '{"caption": 3}',
    "null": '{"caption": null, "url": null, "nsfw": 1, "language": ["en"]}',
    "object": '{"caption": {"en": "c"}}',
    "long": json.dumps({"caption": "x" * (1 << 20), "url": "u" * (1 << 20)}),
    "nuls": '{"caption": "a\\u0000b", "url": "u\\u0000"}',
    "status": '{"caption": "c", "status": {"a": 1}}',
}


def test_no_metadata_stops_a_build(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for number, text in enumerate(METADATA.values()):
            for suffix, data in (("jpg", PICTURE), ("json", text.encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows, report = made(find_shards(tmp_path / "in"), tmp_path / "out")
    assert report.read == len(METADATA)
    assert report.rejected == {
        "original size is no number of pixels": 3,
        "sides in a ratio above 20": 1,  # -5 x -5
        "caption missing": 3,  # two of them lie in a JSON that cannot be read
        "caption is not UTF-8": 1,
        "caption is no text": 2,
        "caption longer than 2000 characters": 1,
        "not downloaded": 1,
    }
    names = list(METADATA)
    kept = {names[int(row["key"].decode().rpartition("/")[2])]: row for row in rows}
    assert kept["surrogate url"]["url"].decode() == "http://x/\\ud83d"
    assert kept["list"]["caption"].decode().split("\n") == ["one", "two"]
    assert kept["nuls"]["caption"].decode() == "a b"
    assert kept["width in words"]["original_width"] == 20
    score = kept["score of 400 digits"]
    assert math.isnan(score["aesthetic"]) and math.isnan(score["similarity"])


def parquet(path, **columns):
    count = len(next(iter(columns.values())))
    table = {"jpg": pyarrow.array([PICTURE] * count), **columns}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return [ParquetPart(str(path))]


def no_text(*values):
    """A column of text, some of whose values are no UTF-8."""
    data = [value.encode("utf-8", "surrogateescape") for value in values]
    ends = np.cumsum([0, *(len(value) for value in data)]).astype(np.int32)
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(data))]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(data), buffers)


def test_text_in_a_parquet_that_is_none_is_one_rows_damage(tmp_path):
    keys, told = no_text("a", "b\udce9", "c", "d"), no_text("one", "two", "caf\udce9", "four")
    rows, report = made(parquet(tmp_path / "a.parquet", key=keys, caption=told, url=keys), tmp_path / "out")
    assert [row["key"].decode() for row in rows] == ["a", "b\\xe9", "d"]
    assert [row["url"].decode() for row in rows] == ["a", "b\\xe9", "d"]
    assert report.rejected == {"caption is not UTF-8": 1}
    # The same beside a tar, where keys must be found again.
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "s.tar", "w") as tar:
        for name in "acd":
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(PICTURE)
            tar.addfile(info, io.BytesIO(PICTURE))
    pyarrow.parquet.write_table(pyarrow.table({"key": keys, "caption": told}), tmp_path / "in" / "s.parquet")
    rows, report = made(find_shards(tmp_path / "in"), tmp_path / "tar")
    assert [row["key"].decode() for row in rows] == ["a", "d"]
    assert report.rejected == {"caption is not UTF-8": 1, "image missing": 1}


@pytest.mark.parametrize("kind", ["dictionary", "large", "binary", "list", "struct", "numbers", "dates"])
def test_columns_of_any_type(tmp_path, kind):
    words = pyarrow.array(["one", "two", None])
    column = {
        "dictionary": words.dictionary_encode(),
        "large": words.cast(pyarrow.large_string()),
        "binary": words.cast(pyarrow.binary()),
        "list": pyarrow.array([["one"], ["two", None], None]),
        "struct": pyarrow.array([{"en": "one"}, {"en": "two"}, None]),
        "numbers": pyarrow.array([1, 2, None]),
        "dates": pyarrow.array([1, 2**62, None], pyarrow.timestamp("us")),
    }[kind]
    if kind in ("struct", "numbers", "dates"):
        with pytest.raises(UserError, match="no record was kept of 3"):
            made(parquet(tmp_path / "a.parquet", caption=column), tmp_path / "out")
        return
    rows, report = made(parquet(tmp_path / "a.parquet", caption=column, width=column), tmp_path / "out")
    assert [row["caption"].decode() for row in rows] == ["one", "two"]
    assert report.rejected == {"caption missing": 1}


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_pictures_of_another_type_are_counted(tmp_path, kind):
    pictures = {
        "text": pyarrow.array(["a.jpg", None]),
        "numbers": pyarrow.array([[1, 2], None], pyarrow.list_(pyarrow.uint8())),
    }[kind]
    pyarrow.parquet.write_table(
        pyarrow.table({"png": pictures, "caption": ["a", "b"]}), tmp_path / "a.parquet"
    )
    with pytest.raises(
        UserError, match=r"of 2 \(image (is no bytes|of no known kind): 1, image missing: 1\)"
    ):
        made([ParquetPart(str(tmp_path / "a.parquet"))], tmp_path / "out")


def test_two_columns_of_one_name_are_neither(tmp_path):
    words = pyarrow.array(["one", "two"])
    table = pyarrow.table(
        [pyarrow.array([PICTURE] * 2), words, words, words], ["jpg", "caption", "key", "key"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows, _ = made([ParquetPart(str(tmp_path / "a.parquet"))], tmp_path / "out")
    assert [row["key"].decode() for row in rows] == ["a/0", "a/1"]


def coco(tmp_path, images, annotations, **more):
    (tmp_path / "1.jpg").write_bytes(PICTURE)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return find_captions(file)


def test_coco_as_people_have_it(tmp_path):
    images = [
        {"id": 7, "file_name": "1.jpg", "width": float("nan")},
        {"id": "8", "file_name": "1.jpg"},
        {"id": 9},
        {"file_name": "1.jpg"},
        "an image",
        None,
        {"id": [1], "file_name": 3},
        {"id": 7, "file_name": "1.jpg"},
        {"id": 10, "file_name": str(tmp_path / "1.jpg")},
        {"id": 11, "file_name": "x\x00.jpg"},
        {"id": 12, "file_name": "."},
    ]
    notes = [
        {"image_id": "7", "caption": "seven"},
        {"image_id": 8, "caption": ["eight", "acht"]},
        *({"image_id": n, "caption": "so"} for n in (10, 11, 12)),
        "an annotation",
        {"caption": "of none"},
        {"image_id": 7},
        {"image_id": 99, "caption": "gone"},
    ]
    rows, report = made(coco(tmp_path, images, notes, info=float("nan")), tmp_path / "out")
    assert {row["key"].decode(): row["caption"].decode() for row in rows} == {"7": "seven", "10": "so"}
    assert report.rejected == {
        "image has no file_name": 2,
        "image has no id": 3,
        "key duplicated": 1,
        "caption is no text": 1,
        "image cannot be read": 1,
        "image is no file": 1,
    }
    assert [problem.partition(": ")[2] for problem in report.problems] == [
        "2 captions name no image_id",
        "1 captions have no caption",
        "1 captions are of no picture that is listed",
    ]


@pytest.mark.parametrize("change", [{"images": None}, {"annotations": {"a": 1}}, {"images": "x"}])
def test_coco_without_its_lists_is_refused(tmp_path, change):
    data = {"images": [], "annotations": [], **change}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="lacks the lists 'images' and 'annotations'"):
        find_captions(tmp_path / "c.json")
    (tmp_path / "c.json").write_text(DEEP)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        find_captions(tmp_path / "c.json")


def test_values_of_a_jsonl_may_be_anything(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    values = [
        "a.jpg",
        "../x.jpg",
        "/none.jpg",
        3,
        ["a.jpg"],
        {"a": 1},
        True,
        "",
        None,
        "a\udcff.jpg",
        "x" * 5000,
    ]
    lines = [json.dumps({"path": value, "caption": "c", "key": f"{n}"}) for n, value in enumerate(values)]
    lines += [json.dumps({"path": "a.jpg", "caption": value}) for value in (None, 3, [], {}, ["c", 1])]
    lines += [json.dumps({"path": "a.jpg", "caption": "c", "key": key}) for key in ({"a": 1}, [1], 1.5, True)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    rows, report = made(find_captions(tmp_path / "c.jsonl"), tmp_path / "out")
    assert report.read == len(lines)
    assert report.rejected["path is no text"] == 4
    assert report.rejected["image missing"] == 5
    assert [row["key"].decode() for row in rows][:2] == ["0", "{'a': 1}"]


def test_texts_beside_pictures_in_any_encoding(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    texts = {"a": "größer".encode(), "b": "größer".encode("utf-8-sig"), "c": "größer".encode("utf-16"),
             "d": b"caf\xe9", "e": b"", "f": b"\xff\xfe", "g": b"a\r\nb\x00"}  # fmt: skip
    for name, data in texts.items():
        (root / f"{name}.jpg").write_bytes(PICTURE)
        (root / f"{name}.txt").write_bytes(data)
    os.symlink(root / "none.jpg", root / "h.jpg")
    os.mkfifo(root / "i.jpg")
    (root / "i.txt").write_text("a pipe")
    rows, report = made(find_captions(root), tmp_path / "out")
    assert {row["key"].decode(): row["caption"].decode() for row in rows} == {
        **dict.fromkeys("abc", "größer"),
        "g": "a b",
    }
    assert report.rejected == {"caption is not UTF-8": 1, "caption empty": 2, "caption missing": 1,
                               "image is no file": 1}  # fmt: skip


def test_what_nobody_thought_of_is_one_samples_damage(tmp_path, monkeypatch):
    def odd():
        raise LookupError("odd")

    with pytest.raises(Rejected, match=r"sample cannot be read \(LookupError\)"):
        admit(Sample("k", odd, None, {"caption": "c"}), FilterConfig())
    with ShardWriter(tmp_path / "shard") as writer:
        good = admit(Sample("k", lambda: PICTURE, None, {"caption": "c"}), FilterConfig())
        with pytest.raises(Rejected, match="record cannot be stored"):
            writer.encode({**good, "width": 2**40})

    class Falls:
        name = "falls"

        def samples(self, problems):
            yield Sample("a", lambda: PICTURE, None, {"caption": "c"})
            raise LookupError("odd")

        def key_list(self):
            return ["a", "b", "c"]

        def columns(self):
            return None

        def files(self):
            return []

    _, report = made([Falls()], tmp_path / "out")
    assert (report.read, report.rejected) == (3, {"lost in a damaged shard": 2})
    assert report.problems == ["part 'falls' cannot be read further: odd"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_cut_anywhere_are_read_or_refused(kind):
    import PIL.Image

    data = like.encode(PIL.Image.fromarray(np.zeros((9, 11, 3), np.uint8)), kind)
    for end in range(0, len(data), max(len(data) // 60, 1)):
        try:
            found = picture_size(data[:end])
        except Rejected as error:
            found = str(error)[:6]
        assert found in ((11, 9), "image ")


def test_a_file_that_is_none_is_no_picture(tmp_path):
    with pytest.raises(Rejected, match="image is no file"):
        FileBytes(str(tmp_path), "image")()
    with pytest.raises(Rejected, match="image is no file"):
        FileBytes("/dev/zero", "image")()


def test_a_full_disk_is_one_sentence(tmp_path):
    os.symlink("/dev/full", tmp_path / "shard")
    record = admit(Sample("k", lambda: PICTURE, None, {"caption": "c"}), FilterConfig())

    def write():
        with ShardWriter(tmp_path / "shard") as writer:
            for _ in range(2000):
                writer.write(record, writer.encode(record))

    with pytest.raises(UserError, match=r"^cannot write '.*shard': no space is left on its disk$"):
        write()
