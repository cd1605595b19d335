"""Rows of a table in JSON, JSON lines or Parquet, compressed or not, as JSON values."""

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from pydantic_core import from_json


class Record(NamedTuple):
    """One row of a file."""

    location: str
    """The file with the row's number, or its line."""
    values: dict[str, Any]


def read_bytes(path: str | Path) -> bytes:
    """A file's content, decompressed if it ends in .gz, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not gzip's.
    """
    content = Path(path).read_bytes()
    if Path(path).suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file: {error}") from None
    return content.removeprefix(b"\xef\xbb\xbf")


def read_records(path: str | Path, expected: str) -> list[Record]:
    """Rows of a file in order: of Parquet, of a JSON list or object (one row), or of JSON lines.

    Parquet ends in .parquet; the content decides between the others. Empty lines are skipped.

    Args:
        path: the file.
        expected: what to write instead of the path of another file.

    Raises:
        ValueError: there is no such file, it has no rows, it is damaged, or a row is not an object.
    """
    try:
        if Path(path).suffix.lower() == ".parquet":
            rows = [(f"{path}: row {i}", row) for i, row in enumerate(_parquet(path), start=1)]
        else:
            rows = _json_rows(path, read_bytes(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {expected}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {expected}") from None
    if not rows:
        raise ValueError(f"{path}: empty; {expected}")
    for location, row in rows:
        if not isinstance(row, dict):
            kind = "line" if re.search(r":\d+$", location) else "row"
            raise ValueError(
                f"{location}: the {kind} is {row!r:.40}; it should be an object; {expected}"
            )
    return [Record(location, row) for location, row in rows]


def require_columns(record: Record, *alternatives: Sequence[str]) -> None:
    """Raise ValueError unless the record has every column of one of the alternatives."""
    if not any(set(names) <= record.values.keys() for names in alternatives):
        needed = ", or ".join(" and ".join(names) for names in alternatives)
        has = ", ".join(record.values)
        raise ValueError(f"{record.location}: no column {needed}; its columns are {has}")


def _parquet(path: str | Path) -> list[dict[str, Any]]:
    try:
        return pl.read_parquet(path).to_dicts()
    except pl.exceptions.PolarsError as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path}: cannot be read as parquet: {first}") from None


def _json_rows(path: str | Path, content: bytes) -> list[tuple[str, Any]]:
    lines = [(n, line) for n, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if ".jsonl" not in Path(path).suffixes:
        try:
            value = from_json(content)
        except ValueError as error:
            if lines and not _is_json(lines[0][1]):
                raise ValueError(f"{path}: not JSON: {error}") from None
        else:
            rows = value if isinstance(value, list) else [value]
            return [(f"{path}: row {i}", row) for i, row in enumerate(rows, start=1)]
    return [(f"{path}:{number}", _line(path, number, line)) for number, line in lines]


def _is_json(content: bytes) -> bool:
    try:
        from_json(content)
    except ValueError:
        return False
    return True


def _line(path: str | Path, number: int, line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError as error:
        # Every line is parsed separately, so the parser always names line 1.
        problem = str(error).replace("at line 1 column", "at column")
        raise ValueError(f"{path}:{number}: not JSON: {problem}") from None
