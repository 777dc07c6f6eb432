"""Metadata beside the pictures: img2dataset's parquet files and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mvader_jax.data.building.schema import columns

Row = dict[str, Any]


def named(row: Mapping[str, Any]) -> Row:
    """A row under the column names of `schema.SPELLINGS`; other columns are dropped."""
    return {column: row[name] for column, name in columns(list(row)).items()}


def read_rows(path: str, problems: list[str]) -> list[Row] | None:
    """The rows of a parquet file; None, and a line in `problems`, if it cannot be read."""
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        found = columns(file.schema_arrow.names)
        table = file.read(columns=list(found.values())).rename_columns(list(found))
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        problems.append(f"{path}: cannot be read as parquet: {_first_line(error)}")
        return None
    return table.to_pylist()


def table_keys(path: str) -> list[str] | None:
    """The key column of a parquet file; None where there is none or the file cannot be read."""
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        name = columns(file.schema_arrow.names).get("key")
        return None if name is None else [str(key) for key in file.read(columns=[name]).column(0).to_pylist()]
    except (OSError, ValueError):
        return None


def table_columns(path: str) -> set[str] | None:
    """The columns of `schema.SPELLINGS` that a parquet file has; None if it cannot be read."""
    import pyarrow.parquet

    try:
        return set(columns(pyarrow.parquet.ParquetFile(path).schema_arrow.names))
    except (OSError, ValueError):
        return None


def parse_json(data: bytes) -> Row:
    """A sample's own metadata; empty if it is no JSON object."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return named(value) if isinstance(value, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
