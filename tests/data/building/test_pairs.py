"""Pairs with hard negatives out of tables of triplets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mvader_jax.cli.main import main
from mvader_jax.data.building.pairs import write_pairs
from mvader_jax.data.sources.jsonl import PairLines
from mvader_jax.errors import UserError

TRIPLETS = {
    "anchor": ["A man eats.", "A man eats.", "A dog runs.", "  ", "A cat.", "Ein Hund läuft."],
    "positive": ["Someone eats.", "Someone eats.", "An animal runs.", "x", None, "Ein Tier läuft."],
    "negative": ["A man sleeps.", "Nobody eats.", "A dog sleeps.", "y", "z", ""],
}


def test_rows_of_one_pair_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow.parquet.write_table(pa.table(TRIPLETS), tmp_path / "train-00000-of-00001.parquet")
    out = tmp_path / "data" / "nli.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(["data", "pairs", str(tmp_path), str(out)])
    assert not stopped.value.code
    assert capsys.readouterr().out.splitlines() == [
        "read      6 rows",
        "written   2 pairs, 3 negatives",
        "left out  1: no negative",
        "left out  1: no positive",
        "left out  1: no query",
    ]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {
        "query": "A man eats.",
        "positive": "Someone eats.",
        "negatives": ["A man sleeps.", "Nobody eats."],
    }
    # What the contrastive objective reads.
    record = PairLines([str(out)]).record(1, np.random.default_rng(0))
    assert record == {"query": "A dog runs.", "positive": "An animal runs.", "negative": "A dog sleeps."}
    # The same again says so; anything else is no place for it.
    before = out.stat()
    with pytest.raises(SystemExit) as stopped:
        main(["data", "pairs", str(tmp_path / "train-*.parquet"), str(out)])
    assert not stopped.value.code
    assert capsys.readouterr().out.splitlines()[-1] == f"{out} is already built, from the same rows"
    (tmp_path / "other.jsonl").write_text(json.dumps({"query": "a", "positive": "b", "negative": "c"}))
    for other in (out, tmp_path / "other.jsonl"):
        with pytest.raises(UserError, match="exists already"):
            write_pairs(str(tmp_path / "other.jsonl"), other)
    assert out.stat() == before
    write_pairs(str(tmp_path / "train-*.parquet"), out, overwrite=True)
    # Only what it wrote, and never what it reads.
    kept = out.read_bytes()
    with pytest.raises(UserError, match="is the source; choose another place"):
        write_pairs(str(out), out, overwrite=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds no pairs that mvader wrote"):
        write_pairs(str(out), tmp_path / "notes.txt", overwrite=True)
    assert out.read_bytes() == kept and (tmp_path / "notes.txt").read_text() == "mine"


def test_several_negatives_of_a_row(tmp_path: Path) -> None:
    row = {"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d", "negatives": 3}
    (tmp_path / "a.jsonl").write_text(
        json.dumps(row) + "\n\n[]\n{\n" + "[" * 100_000 + "\n" + json.dumps({**row, "query": "lone \ud83d"})
    )
    report = write_pairs(str(tmp_path / "a.jsonl"), tmp_path / "out")
    assert (report.rows, report.pairs, report.negatives) == (5, 1, 2)
    assert report.left_out == {"line is no JSON object": 3, "no query": 1}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.jsonl", b"{", "has no pair: of 1 rows, {'line is no JSON object': 1}"),
        ("a.jsonl", b'{"premise": "x"}', "has no pair: of 1 rows, {'no query': 1}"),
        ("a.csv", b"x", "names no .parquet or .jsonl file"),
    ],
)
def test_what_is_no_table_of_triplets(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        write_pairs(str(tmp_path / name), tmp_path / "out")
    pyarrow.parquet.write_table(pa.table({"premise": ["x"], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="has the columns premise, label; needed are anchor"):
        write_pairs(str(tmp_path / "b.parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
