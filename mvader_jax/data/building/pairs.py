"""Text pairs with hard negatives, for the contrastive objective, from tables of triplets (NLI as SGPT trains on it)."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.data.building.tables import Table, Unreadable, first_line
from mvader_jax.errors import UserError
from mvader_jax.storage import hub
from mvader_jax.storage.atomic import local, whole_file

Row = Mapping[str, Any]
#: Names of the column that a pair starts from.
_QUERIES = ("query", "anchor")


@dataclasses.dataclass(frozen=True)
class PairsReport:
    """Rows read, pairs written and their negatives, and rows left out by reason; rows = written + repeated + left out.

    already: the file was there, and holds the same.
    """

    rows: int
    pairs: int
    negatives: int
    left_out: Mapping[str, int]
    already: bool = False

    def lines(self) -> list[str]:
        found = [
            f"read      {self.rows:,} rows",
            f"written   {self.pairs:,} pairs, {self.negatives:,} negatives",
        ]
        return found + [f"left out  {count:,}: {reason}" for reason, count in sorted(self.left_out.items())]


def write_pairs(source: str, out: Path, *, overwrite: bool = False) -> PairsReport:
    """Writes {"query", "positive", "negatives"} a line, the rows of one query and positive joined.

    source: .parquet or .jsonl files with a column "query" or "anchor", one "positive" and some that begin with
    "negative"; a path, a pattern, or hf:datasets/ORG/NAME/FILE. Raises UserError where they have no such columns, nothing
    is left, or `out` is there and holds something else.
    """
    taken = UserError(f"{out} exists already; choose another place or pass --overwrite")
    there = local(out).exists()
    if there and overwrite:
        _check_ours(out, _files(source))
    elif there and not _is_ours(out):
        raise taken
    found: dict[tuple[str, str], dict[str, None]] = {}
    rows, left_out = 0, Counter[str]()
    for file in _files(source):
        for row in _rows(file):
            rows += 1
            if row is None:
                left_out["line is no JSON object"] += 1
                continue
            texts = [_text(row, *_QUERIES), _text(row, "positive")]
            negatives = [text for name in row if name.startswith("negative") and (text := _text(row, name))]
            if not all(texts) or not negatives:
                left_out[
                    "no query" if not texts[0] else "no positive" if not texts[1] else "no negative"
                ] += 1
                continue
            found.setdefault((texts[0], texts[1]), {}).update(dict.fromkeys(negatives))
    if not found:
        raise UserError(f"{source} has no pair: of {rows:,} rows, {dict(left_out) or 'none'}")
    report = PairsReport(rows, len(found), sum(map(len, found.values())), left_out)
    lines = (
        json.dumps({"query": query, "positive": positive, "negatives": list(held)}, ensure_ascii=False) + "\n"
        for (query, positive), held in found.items()
    )
    if there and not overwrite:
        with out.open(encoding="utf-8", newline="") as stream:
            if any(one != other for one, other in itertools.zip_longest(lines, stream)):
                raise taken
        return dataclasses.replace(report, already=True)
    local(out).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(lines)
    return report


def _check_ours(out: Path, sources: Sequence[Path]) -> None:
    """Raises UserError where a file that is to be replaced is a source, or no pairs that were written here."""
    if any(file.exists() and file.samefile(out) for file in map(Path, sources)):
        raise UserError(f"{out} is the source; choose another place")
    if not _is_ours(out):
        raise UserError(
            f"{out} is not replaced: it holds no pairs that mvader wrote; remove it or choose another place"
        )


def _is_ours(out: Path) -> bool:
    """Whether a file begins as `write_pairs` has it."""
    try:
        with out.open(encoding="utf-8") as stream:
            return bool(json.loads(next(stream)).keys() == {"query", "positive", "negatives"})
    except (OSError, ValueError, StopIteration, AttributeError):
        return False


def _files(source: str) -> Sequence[Path]:
    if hub.is_address(source):
        return hub.download(source, lambda names: [name for name in names if name.endswith(_KINDS)]).files
    path = local(source)
    files = sorted(path.iterdir()) if path.is_dir() else [Path(name) for name in sorted(glob.glob(source))]
    files = [file for file in files if file.suffix in _KINDS]
    if not files:
        raise UserError(f"{source} names no {' or '.join(_KINDS)} file")
    return files


def _rows(file: Path) -> Iterator[Row | None]:
    """The rows of a file, None for one that is no row. Raises UserError where it is damaged, or has other columns."""
    try:
        yield from _READERS[file.suffix](file)
    except UserError:
        raise
    except (OSError, Unreadable) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)[:200]}") from None


def _parquet(file: Path) -> Iterator[Row]:
    table = Table(str(file))
    names = table.names
    if (
        not set(names) & set(_QUERIES)
        or "positive" not in names
        or not any(n.startswith("negative") for n in names)
    ):
        raise UserError(
            f"{file} has the columns {', '.join(names[:8])}; needed are anchor (or query), positive and negative"
        )
    wanted = {name for name in names if name.startswith("negative") or name in ("positive", *_QUERIES)}
    yield from table.read({name: name for name in wanted})


def _jsonl(file: Path) -> Iterator[Row | None]:
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield row if isinstance(row, dict) else None


def _text(row: Row, *names: str) -> str:
    """The first of these columns that holds a text; "" where none does."""
    return next((text for name in names if (text := _unicode(row.get(name)))), "")


def _unicode(value: Any) -> str:
    """A text without the blanks around it; "" for what is none, or is no Unicode."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        return text.strip() if isinstance(text, str) and text.encode() else ""
    except UnicodeError:
        return ""


_READERS = {".parquet": _parquet, ".jsonl": _jsonl}
_KINDS = tuple(_READERS)
