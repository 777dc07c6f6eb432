"""Metadata beside the pictures: img2dataset's parquet files and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from mvader_jax.data.building.schema import columns
from mvader_jax.data.unicode import printable

Row = dict[str, Any]
_BATCH = 64


def named(row: Mapping[str, Any]) -> Row:
    """A row under the column names of `schema.SPELLINGS`; other columns are dropped."""
    return {column: row[name] for column, name in columns(list(row)).items()}


def key_of(row: Row) -> str | None:
    """The key of a row as text; None where it has none."""
    value = row.get("key")
    return None if value is None or value == "" else printable(value)


class Table:
    """A parquet file. Columns of text are read as bytes, so that one that is no UTF-8 is one row's damage."""

    def __init__(self, file: str | IO[bytes]) -> None:
        """file: its path, or what is read and sought in. Raises Unreadable where it is no parquet file."""
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(file)
            names = self._file.schema_arrow.names
        except Exception as error:  # pyarrow raises anything on a hostile footer
            raise Unreadable(first_line(error)) from None
        # Of two columns of one name nobody knows which is meant; neither can be asked for.
        self.names = [name for name in names if names.count(name) == 1]
        self.columns = columns(self.names)
        self.rows: int = self._file.metadata.num_rows

    def named_as(self, suffixes: Sequence[str]) -> str | None:
        """The first column that is named by one of these, in any case."""
        return next((name for name in self.names if name.lower() in suffixes), None)

    def pictures(self) -> list[str]:
        """Columns of bytes, or of structures that hold some, as `datasets` keeps pictures."""
        import pyarrow

        def holds_bytes(kind: pyarrow.DataType) -> bool:
            if pyarrow.types.is_struct(kind):
                return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
            return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

        return [name for name in self.names if holds_bytes(self._file.schema_arrow.field(name).type)]

    def texts(self) -> list[str]:
        """Columns of texts, or of lists of them."""
        import pyarrow

        def holds_text(kind: pyarrow.DataType) -> bool:
            if (
                pyarrow.types.is_dictionary(kind)
                or pyarrow.types.is_list(kind)
                or pyarrow.types.is_large_list(kind)
            ):
                return holds_text(kind.value_type)
            return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)

        return [name for name in self.names if holds_text(self._file.schema_arrow.field(name).type)]

    def read(self, more: Mapping[str, str] | None = None) -> Iterator[Row]:
        """The rows under the names of `schema.SPELLINGS`, and of `more` as in `columns`.

        Raises Unreadable where the file is damaged; the rows before are had.
        """
        wanted = {**self.columns, **(more or {})}
        try:
            if not wanted:
                yield from ({} for _ in range(min(self.rows, 1 << 40)))
                return
            for batch in self._file.iter_batches(
                batch_size=_BATCH, columns=list(dict.fromkeys(wanted.values()))
            ):
                values = {name: _values(batch.column(at)) for at, name in enumerate(batch.schema.names)}
                held = {column: values[name] for column, name in wanted.items()}
                for row in range(batch.num_rows):
                    yield {column: of[row] for column, of in held.items()}
        except GeneratorExit:
            raise
        except Exception as error:  # as above
            raise Unreadable(first_line(error)) from None


class Unreadable(Exception):
    """A file that is damaged, and how in one line."""


def _values(column: Any) -> list[Any]:
    import pyarrow

    kind = column.type
    if isinstance(kind, pyarrow.DictionaryType):
        column, kind = column.dictionary_decode(), kind.value_type
    if pyarrow.types.is_string(kind):
        column = column.cast(pyarrow.binary())
    elif pyarrow.types.is_large_string(kind):
        column = column.cast(pyarrow.large_binary())
    try:
        return list(column.to_pylist())
    except Exception:  # of one value, such as a date that Python does not have
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception:  # as above
        return None


def read_rows(path: str, problems: list[str]) -> list[Row] | None:
    """The rows of a parquet file; None, and a line in `problems`, if it cannot be read."""
    try:
        return list(Table(path).read())
    except Unreadable as error:
        problems.append(f"{path}: cannot be read as parquet: {error}")
        return None


def table_keys(path: str) -> list[str] | None:
    """The key column of a parquet file; None where there is none or the file cannot be read."""
    try:
        table = Table(path)
        if "key" not in table.columns:
            return None
        table.columns = {"key": table.columns["key"]}
        return [str(key_of(row)) for row in table.read()]
    except Unreadable:
        return None


def table_columns(path: str) -> set[str] | None:
    """The columns of `schema.SPELLINGS` that a parquet file has; None if it cannot be read."""
    try:
        return set(Table(path).columns)
    except Unreadable:
        return None


def parse_json(data: bytes, caption: str = "") -> Row:
    """A sample's own metadata; empty if it is no JSON object. caption: the key that holds it, if not a known one."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {**named(value), **({"caption": value[caption]} if caption in value else {})}


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return printable((str(error).splitlines() or [type(error).__name__])[0])
