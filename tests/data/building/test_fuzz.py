"""Inputs of a build with anything in them: no traceback, and the counts add up.

The short run is the same every time. The long one mutates for MVADER_FUZZ_SECONDS (600) a kind, from a seed that it
prints (MVADER_FUZZ_SEED repeats it):

    pytest -m slow tests/data/building/test_fuzz.py -s -n 4
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import tarfile
import time
import warnings

import hypothesis
import img2dataset_like as like
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from mvader_jax.data.building.admit import Rejected
from mvader_jax.data.building.captions import read_table
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.listed import find_captions
from mvader_jax.data.building.parts import find_shards
from mvader_jax.data.building.run import build
from mvader_jax.data.sources.stored import Stored
from mvader_jax.errors import UserError

PICTURE = like.jpeg(np.random.default_rng(0), 12, 9)
TEXTS = ["a cat", 'a "dog", and\n a cat', "größer", "", " ", "日本", "x" * 2100, "tab\there", '"open', "it's"]
PATHS = ["a.jpg", "b.jpg", "./a.jpg", "none.jpg", "../a.jpg", "b", "/", ""]

#: What breaks readers, put anywhere.
TOKENS = [
    *(b'"', b'""', b",", b"\t", b"\n", b"\r\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\xbd"),
    *(b"{", b"}", b"[", b"]", b"null", b"NaN", b"Infinity", b"1e400", b"9" * 400, b"-1", b"[" * 3000, b"\\ud83d"),
    *(b"\xe2\x80\xa8", b"\x0b", b";", b"caption", b"path", b"key", b'"width": 3e9', b"PAR1", b"ustar", bytes(512)),
]  # fmt: skip


def csv_text(rng, mark):
    def field(text):
        quoted = rng.random() < 0.7 or mark in text or "\n" in text
        return '"{}"'.format(text.replace('"', '""')) if quoted else text

    lines = [mark.join(["path", "caption", *(["width"] if rng.random() < 0.3 else [])])]
    lines += [mark.join([pick(rng, PATHS), field(pick(rng, TEXTS))]) for _ in range(rng.integers(1, 12))]
    return pick(rng, ["\n", "\r\n"]).join(lines)


def csv(rng):
    return csv_text(rng, pick(rng, [",", ";"])).encode(pick(rng, ["utf-8", "utf-8-sig", "utf-16"]))


def tsv(rng):
    return csv_text(rng, "\t").encode()


def value(rng, depth=0):
    choices = [None, True, 3, -1, 1e300, "text", "\ud83d", *TEXTS, *PATHS]
    if depth < 2 and rng.random() < 0.2:
        return [value(rng, depth + 1) for _ in range(3)]
    return {"a": value(rng, depth + 1)} if rng.random() < 0.1 else choices[rng.integers(len(choices))]


def row(rng):
    names = ["path", "caption", "key", "width", "height", "url", "nsfw", "status", "AESTHETIC_SCORE"]
    made = {"path": pick(rng, PATHS), "caption": pick(rng, TEXTS)}
    return made | {name: value(rng) for name in names if rng.random() < 0.15}


def jsonl(rng):
    return "\n".join(json.dumps(row(rng)) for _ in range(rng.integers(1, 12))).encode()


def coco(rng):
    images = [{"id": n, "file_name": pick(rng, PATHS)} for n in range(rng.integers(1, 8))]
    notes = [{"image_id": int(rng.integers(9)), "caption": pick(rng, TEXTS)} for _ in range(rng.integers(9))]
    for holder in (*images, *notes):
        for name in list(holder):
            if rng.random() < 0.1:
                holder[name] = value(rng)
            elif rng.random() < 0.05:
                del holder[name]
    extra = [value(rng)] if rng.random() < 0.3 else []
    return json.dumps({"images": [*images, *extra], "annotations": [*notes, *extra]}).encode()


def tar(rng):
    file = io.BytesIO()
    layout = int(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=file, mode="w", format=layout) as out:
        for number in range(rng.integers(1, 6)):
            folder = pick(rng, ["", "", "x/", "./", "a" * 120 + "/"])
            members = [
                ("jpg", PICTURE),
                ("txt", pick(rng, TEXTS).encode()),
                ("json", json.dumps(row(rng)).encode()),
            ]
            for suffix, data in members[: rng.integers(1, 4)]:
                info = tarfile.TarInfo(f"{folder}{number}.{suffix}")
                info.size = len(data)
                if rng.random() < 0.1:
                    info.type, info.size = int(rng.integers(0, 8)).__str__().encode(), 0
                    info.linkname = "0.jpg"
                out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet(rng):
    count = int(rng.integers(1, 8))
    columns = {"jpg": pyarrow.array([PICTURE if rng.random() < 0.9 else None for _ in range(count)])}
    for name in ("caption", "key", "width", "status", "url"):
        kind = pick(rng, ["text", "text", "text", "number", "list", "binary", "none"])
        if kind == "none":
            continue
        texts = [pick(rng, ["success"] * 9 + ["404"] if name == "status" else TEXTS) for _ in range(count)]
        columns[name] = {
            "text": lambda texts=texts: pyarrow.array(texts),
            "number": lambda: pyarrow.array(rng.normal(size=count) * 10.0 ** rng.integers(0, 300)),
            "list": lambda texts=texts: pyarrow.array([[text] for text in texts]),
            "binary": lambda texts=texts: pyarrow.array([text.encode("utf-16") for text in texts]),
        }[kind]()
    file = io.BytesIO()
    options = {"compression": pick(rng, ["none", "snappy", "zstd"]), "data_page_size": 256}
    pyarrow.parquet.write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


KINDS = {"csv": csv, "tsv": tsv, "jsonl": jsonl, "json": coco, "tar": tar, "parquet": parquet}


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


#: Kinds of which little is left after a change anywhere: they are made odd, and changed seldom.
FRAGILE = ("json", "parquet")


def mutated(rng, data, kind):
    """A few bytes changed, lost, doubled or put in, or none; at times the tail is lost."""
    data = bytearray(data)
    for _ in range(int(rng.choice([0, 0, 0, 1] if kind in FRAGILE else [0, 1, 1, 2, 4, 16]))):
        at = int(rng.integers(len(data) + 1))
        length = int(rng.choice([1, 1, 4, 40]))
        what = rng.integers(5)
        if what == 0:
            data[at : at + length] = rng.bytes(length)
        elif what == 1:
            del data[at : at + length]
        elif what == 2:
            data[at:at] = data[at : at + length]
        elif what == 3 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at:at] = pick(rng, TOKENS)
    cut = 0.02 if kind in FRAGILE else 0.125
    return bytes(data if rng.random() > cut else data[: int(rng.integers(len(data) + 1))])


def tried(root, kind, data):
    """Builds from a file of `kind` in an empty folder. Returns what came of it."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "in").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (root / "in" / name).write_bytes(PICTURE)
    (root / "in" / f"c.{kind}").write_bytes(data)
    try:
        parts = (
            find_shards(root / "in")
            if kind in ("tar", "parquet")
            else find_captions(root / "in" / f"c.{kind}")
        )
        report = build(parts, root / "out", "image_captions", FilterConfig())
    except UserError as error:
        said = str(error)
        said.encode()
        assert "\n" not in said and 0 < len(said) < 1500, said
        return "refused"
    assert report.read == report.written + sum(report.rejected.values())
    "\n".join(report.lines()).encode()
    source = Stored(str(root / "out"), None)
    assert len(source) == report.written
    assert all(source.record(i, np.random.default_rng(0))["caption"].strip() for i in range(len(source)))
    return "built"


def fuzz(root, kind, seed, rounds):
    outcomes = {"built": 0, "refused": 0}
    for number in rounds:
        rng = np.random.default_rng([seed, number])
        data = mutated(rng, KINDS[kind](rng), kind)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes[tried(root, kind, data)] += 1
        except BaseException:
            print(f"{kind}: seed {seed}, round {number}")
            raise
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundredfold_of_damage_is_counted_or_refused(tmp_path, kind):
    outcomes = fuzz(tmp_path, kind, 0, range(25))
    assert outcomes["built"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_minutes_of_damage(tmp_path, kind):
    seed = int(os.environ.get("MVADER_FUZZ_SEED", time.time()))
    end = time.monotonic() + float(os.environ.get("MVADER_FUZZ_SECONDS", "600"))
    outcomes = fuzz(
        tmp_path, kind, seed, itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())
    )
    print(f"{kind}: {sum(outcomes.values())} inputs, {outcomes}, seed {seed}")


#: Of a line: anything but an end of one.
LINE = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=60)
PIECES = st.lists(st.sampled_from(['"', '""', ",", "\t", "a.jpg", " ", "x", ';"']), max_size=8).map("".join)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@hypothesis.settings(max_examples=int(os.environ.get("MVADER_EXAMPLES", "60")), deadline=None, database=None)
@hypothesis.given(line=st.one_of(LINE, PIECES), at=st.integers(0, 5))
def test_a_line_with_anything_in_it_takes_no_other_along(tmp_path_factory, kind, line, at):
    file = tmp_path_factory.getbasetemp() / f"c.{kind}"
    mark = "\t" if kind == "tsv" else ","
    told = ["plain", 'a "quoted" word', "it's", "größer", "last"]
    if kind == "jsonl":
        lines = [json.dumps({"path": f"{n}.jpg", "caption": text}) for n, text in enumerate(told)]
        head = []
    else:
        lines = [f"{n}.jpg{mark}{text}" for n, text in enumerate(told)]
        head = [f"path{mark}caption"]
    lines.insert(at, line)
    file.write_text("\n".join([*head, *lines]), encoding="utf-8", newline="")
    found = [row for row in read_table(file, file.parent) if not isinstance(row, Rejected)]
    captions = {row.get("path"): row.get("caption") for row in found}
    assert {f"{n}.jpg": text for n, text in enumerate(told)}.items() <= captions.items()
    assert len(found) <= len(told) + 1
