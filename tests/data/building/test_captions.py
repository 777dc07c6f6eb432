"""Caption files as people have them, and with damage: every row is read or counted, and takes no other along."""

from __future__ import annotations

import codecs
import json
import time

import pytest

from mvader_jax.data.building.admit import Rejected
from mvader_jax.data.building.captions import read_table
from mvader_jax.errors import UserError


def rows(tmp_path, text, name="c.csv", encoding="utf-8"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return [str(row) if isinstance(row, Rejected) else row for row in read_table(file, tmp_path)]


def captions(found):
    return [row if isinstance(row, str) else row.get("caption") for row in found]


QUOTE = '"the end of the world, said the poster'


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_quote_that_is_not_closed_is_a_character_of_its_row(tmp_path, kind):
    mark = "," if kind == "csv" else "\t"
    told = [f"picture number {n}" for n in range(100)]
    told[10] = QUOTE
    told[60] = 'a "quoted" word'
    told[70] = 'ends with a quote"'
    text = f"path{mark}caption\n" + "".join(f"{n}.jpg{mark}{line}\n" for n, line in enumerate(told))
    found = rows(tmp_path, text, f"c.{kind}")
    assert [row["path"] for row in found] == [f"{n}.jpg" for n in range(100)]
    assert captions(found) == told


def test_of_paths_without_a_suffix_too_where_a_file_or_a_tab_says_so(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    found = rows(tmp_path, f'path,caption\na,{QUOTE}\nb,plain\nc,"plain"\n')
    assert captions(found) == [QUOTE, "plain", "plain"]
    found = rows(tmp_path, f'path\tcaption\na\t{QUOTE}\nx\tplain\nc\t"plain"\n', "c.tsv")
    assert captions(found) == [QUOTE, "plain", "plain"]


def test_a_large_file_with_an_open_quote_is_read_to_its_end(tmp_path):
    many = "".join(f"{n}.jpg,a long caption of a picture that nobody has\n" for n in range(5_000))
    found = rows(tmp_path, f'path,caption\n0.jpg,"open\n{many}')
    assert len(found) == 5_001
    assert len(rows(tmp_path, "path,caption\na.jpg," + "x" * ((1 << 24) + 9) + "\n")) == 1


def test_a_line_of_nothing_but_quotes_takes_no_hour(tmp_path):
    begun = time.process_time()
    for line in ('"' * 100_001, ',"x' * 60_001, '"",' * 60_001):
        found = rows(tmp_path, f"path,caption\na.jpg,{line}\nb.jpg,plain\n")
        assert found[-1] == {"path": "b.jpg", "caption": "plain"}
    assert time.process_time() - begun < 20


def test_quoted_fields_as_spreadsheets_write_them(tmp_path):
    text = 'path,caption\r\na.jpg,"a dog,\r\nand ""a cat"" \r\n\r\nin rain"\r\n"b.jpg" , "plain"\r\n'
    found = rows(tmp_path, text)
    assert captions(found) == ['a dog,\r\nand "a cat" \r\n\r\nin rain', "plain"]
    # The caption first, both columns quoted over lines.
    text = 'caption,path\n"a\nb, c","d\n.jpg"\nplain,e.jpg\n'
    assert [tuple(row.values()) for row in rows(tmp_path, text)] == [
        ("a\nb, c", "d\n.jpg"),
        ("plain", "e.jpg"),
    ]


def test_commas_that_nobody_quoted(tmp_path):
    assert captions(rows(tmp_path, "path,caption\na.jpg,a dog, and a cat\nb.jpg,plain,,\n")) == [
        "a dog, and a cat",
        "plain",
    ]
    found = rows(tmp_path, "path,caption,licence\na.jpg,a dog, and a cat,free\nb.jpg,plain,free\nc.jpg\n")
    assert captions(found) == ["row has more fields than the header", "plain", None]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "bom-utf-16-be"]
)
def test_every_encoding_and_line_end(tmp_path, encoding, ends):
    text = "path,caption\na.jpg,größer\n\nb.jpg,plain\n".replace("\n", ends)
    data = text.encode(encoding.removeprefix("bom-"))
    data = codecs.BOM_UTF16_BE + data if encoding.startswith("bom-") else data
    assert rows(tmp_path, data) == [
        {"path": "a.jpg", "caption": "größer"},
        {"path": "b.jpg", "caption": "plain"},
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_of_other_marks(tmp_path, mark):
    assert captions(rows(tmp_path, f"Image{mark}caption\na.jpg{mark}one, two\n")) == ["one, two"]


def test_bytes_that_are_no_text_are_one_rows_damage(tmp_path):
    found = rows(tmp_path, b"path,caption\na.jpg,caf\xe9\nb.jpg,plain\n")
    assert captions(found) == ["caf\udce9", "plain"]
    cut = "path,caption\na.jpg,x\n".encode("utf-16") + b"\x00\xd8"
    assert captions(rows(tmp_path, cut))[0] == "x"


@pytest.mark.parametrize(
    "text", ["", "\n\n", "\ufeff", "path,caption\n", "\ufeffpath , caption\r\n\r\n ,\r\n"]
)
def test_a_table_without_rows_has_none(tmp_path, text):
    assert rows(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a,b\n1,2\n", "c.csv", "has the columns a, b; expected a path"),
        ("path,title\n1,2\n", "c.csv", "expected a path .* and a caption"),
        ("path,caption,Caption\na,b,c\n", "c.csv", "several columns 'caption'"),
        ('{"path": "a"}\n{"path": "b"}\n', "c.jsonl", "has the columns path; expected"),
        ("x" * 100_000, "c.csv", "has the columns x"),
    ],
)
def test_other_tables_are_refused_in_a_sentence(tmp_path, text, name, message):
    with pytest.raises(UserError, match=message) as caught:
        rows(tmp_path, text, name)
    assert len(str(caught.value)) < 700


def test_json_lines_are_read_or_counted_one_by_one(tmp_path):
    lines = [
        '{"path": "a.jpg"',
        "[" * 100_000,
        "3",
        '{"path": "b.jpg", "caption": ' + "9" * 5000 + "}",
        json.dumps({"image": "c.jpg", "text": "fine", "extra": float("nan")}),
        json.dumps({"path": "d.jpg"}),
    ]
    found = rows(tmp_path, "\ufeff" + "\n\n".join(lines), "c.jsonl")
    assert [row if isinstance(row, str) else sorted(row) for row in found] == [
        *["line is no JSON object"] * 4,
        ["extra", "image", "text"],
        ["path"],
    ]
