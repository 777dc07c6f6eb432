"""Caption tables as people have them: CSV, TSV and JSON lines in any Unicode encoding, row by row.

A row that cannot be read is one row's damage: a quote that is not closed is a character like others, and does not
take the rows after it along.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mvader_jax.data.building.admit import Rejected
from mvader_jax.data.building.schema import columns
from mvader_jax.data.unicode import KEEP, encoding
from mvader_jax.errors import UserError

#: Columns that name a picture, in lower case; the first that a row fills counts.
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "image_path")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
#: A quoted field may go on over so many lines; one that is longer was never closed.
_QUOTED_LINES = 100
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
Row = dict[str, Any]
#: A row under its column names, or why it cannot be had.
RowOrReason = Row | Rejected


def read_table(path: pathlib.Path, root: pathlib.Path) -> Iterator[RowOrReason]:
    """The rows of a .csv, .tsv or .jsonl file, in order. Bytes that are no text become lone surrogates.

    root: what the paths of pictures are relative to.

    Raises UserError for a file that cannot be read, or whose columns do not name a picture and a caption.
    """
    try:
        with path.open("rb") as file:
            name = encoding(file.read(4096))
        with path.open(encoding=name, errors=KEEP, newline="") as lines:
            json_lines = path.suffix.lower() == ".jsonl"
            yield from _json_rows(path, lines) if json_lines else _rows(path, root, lines)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def has_columns(names: Sequence[str]) -> bool:
    """Whether these columns name a picture and a caption."""
    return any(name.lower() in PATH_COLUMNS for name in names) and "caption" in columns(list(names))


def picture_of(row: Row) -> Any:
    """What a row names as its picture; None where it names none."""
    lower = {name.lower(): value for name, value in reversed(row.items())}
    return next((lower[name] for name in PATH_COLUMNS if lower.get(name)), None)


def _json_rows(path: pathlib.Path, lines: Iterator[str]) -> Iterator[RowOrReason]:
    first: list[str] | None = None
    good = False
    for line in lines:
        if not line.strip("\x00\r\n\t "):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield Rejected("line is no JSON object")
            continue
        first = first or list(row)
        good = good or (picture_of(row) is not None and has_columns(list(row)))
        yield row
    if first and not good:
        raise _no_columns(path, first)


def _rows(path: pathlib.Path, root: pathlib.Path, lines: Iterator[str]) -> Iterator[RowOrReason]:
    tsv = path.suffix.lower() == ".tsv"
    head = next((line for line in lines if line.strip("\x00\r\n\t ")), None)
    if head is None:
        return
    delimiter, names = _header(path, head, ("\t",) if tsv else (",", ";", "\t"))
    of_path = [number for number, name in enumerate(names) if name.lower() in PATH_COLUMNS]
    of_caption = names.index(columns(names)["caption"])

    def is_row(text: str) -> bool:
        """Whether a line is a row of its own, whatever was quoted before it."""
        fields = text.split(delimiter)
        if tsv and len(fields) == len(names) > 1:
            return True
        places = [fields[number].strip(' "') for number in of_path if number < len(fields)]
        enough = len(fields) > max(of_path[0], of_caption)
        return enough and any(place and _names_picture(place, root) for place in places)

    for text, starts, fields in _split(lines, delimiter, is_row):
        while len(fields) > len(names) and not fields[-1].strip():
            fields.pop()
        if len(fields) > len(names):
            # Commas in a caption that nobody quoted: it is the rest of its line.
            if of_caption != len(names) - 1:
                yield Rejected("row has more fields than the header")
                continue
            fields = [*fields[:of_caption], text[starts[of_caption] :].rstrip("\r\n")]
        if any(field.strip() for field in fields):
            yield {name: field for name, field in zip(names, fields, strict=False) if name}


def _names_picture(place: str, root: pathlib.Path) -> bool:
    if place.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
        return True
    try:
        return (root / place).is_file()
    except (OSError, ValueError):  # no file system takes it for a name
        return False


def _header(path: pathlib.Path, line: str, delimiters: Sequence[str]) -> tuple[str, list[str]]:
    """(the delimiter, the names of the columns)."""
    for delimiter in delimiters:
        _, _, fields = next(_split(iter([line]), delimiter, lambda text: True))
        names = [name.strip().strip("\ufeff") for name in fields]
        if has_columns(names):
            break
    else:
        raise _no_columns(path, [name.strip() for name in line.split(delimiters[0])])
    known = [name.lower() for name in names if name]
    twice = [name for name in {*PATH_COLUMNS, columns(names)["caption"].lower()} if known.count(name) > 1]
    if twice:
        raise UserError(f"{str(path)!r} has several columns {twice[0]!r}; leave one")
    return delimiter, names


def _no_columns(path: pathlib.Path, names: Sequence[str]) -> UserError:
    shown = ", ".join(names[:20])[:300].encode("utf-8", "backslashreplace").decode()
    return UserError(
        f"{str(path)!r} has the columns {shown}; expected a path ({', '.join(PATH_COLUMNS)}) and a caption "
        "(caption, text)"
    )


def _split(
    lines: Iterator[str], delimiter: str, is_row: Callable[[str], bool]
) -> Iterator[tuple[str, list[int], list[str]]]:
    """(text of the row, where each field starts in it, the fields) of every row.

    A field in quotes goes on over line ends up to its closing quote, unless a line is reached that `is_row`.
    """
    mark = re.escape(delimiter)
    quoted = re.compile(rf' *"([^"]*(?:""[^"]*)*)"[ ]*(?={mark}|[\r\n]*\Z)')
    opened = re.compile(r' *"')
    plain = re.compile(rf"[^{mark}\r\n]*")
    ahead: list[str] = []

    def more() -> str | None:
        line = next(lines, None)
        if line is not None:
            ahead.append(line)
        return line

    while ahead or more() is not None:
        text = ahead.pop(0)
        if '"' not in text:
            fields = text.rstrip("\r\n").split(delimiter)
            starts = [0, *itertools.accumulate(len(field) + 1 for field in fields[:-1])]
            yield text, starts, fields
            continue
        at, starts, fields, tried = 0, [], [], False
        while True:
            starts.append(at)
            match = quoted.match(text, at)
            if match is None and not tried and opened.match(text, at) and text.count('"', at) % 2:
                tried = True  # once a row: a line of nothing but quotes would be looked through for each
                taken = _closed(text, at, quoted, ahead, more, is_row)
                if taken:
                    text += "".join(ahead[:taken])
                    del ahead[:taken]
                    match = quoted.match(text, at)
            if match is not None:
                fields.append(match[1].replace('""', '"'))
            else:
                match = plain.match(text, at)
                assert match is not None  # it matches nothing, too
                fields.append(match[0])
            at = match.end()
            if not text.startswith(delimiter, at):
                break
            at += 1
        # A field that is not closed on a later line of several ends with its line, and so does the row.
        ahead[:0] = _LINE.findall(text[at:].lstrip("\r\n"))
        yield text, starts, fields


def _closed(
    text: str,
    at: int,
    quoted: re.Pattern[str],
    ahead: Sequence[str],
    more: Callable[[], str | None],
    is_row: Callable[[str], bool],
) -> int:
    """How many of the next lines a field that is open at the end of `text` takes; 0 if it is never closed."""
    for taken in range(1, _QUOTED_LINES):
        if len(ahead) < taken and more() is None:
            return 0
        line = ahead[taken - 1]
        if line.count('"') % 2 == 0:
            if is_row(line):
                return 0
            text += line
            continue
        text += line
        match = quoted.match(text, at)
        inside = line.partition('"')[0]
        return taken if match is not None and not is_row(line) and not is_row(inside) else 0
    return 0
