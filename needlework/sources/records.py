"""Rows of a table in JSON, JSON lines or Parquet, compressed or not, as JSON values."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import polars as pl


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


def read_records(path: str | Path) -> list[dict[str, Any]] | None:
    """Rows of a Parquet file, of a JSON list or of JSON lines; None if the file is none of these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the Parquet file is damaged.
    """
    if Path(path).suffix.lower() == ".parquet":
        try:
            return pl.read_parquet(path).to_dicts()
        except pl.exceptions.PolarsError as error:
            first = str(error).partition("\n")[0]
            raise ValueError(f"{path}: cannot be read as parquet: {first}") from None
    content = read_bytes(path)
    try:
        rows = json.loads(content)
        if isinstance(rows, dict) and ".jsonl" in Path(path).suffixes:
            rows = [rows]
    except ValueError:
        try:
            rows = [json.loads(line) for line in content.split(b"\n") if line.strip()]
        except ValueError:
            return None
    is_table = isinstance(rows, list) and bool(rows) and all(isinstance(r, dict) for r in rows)
    return rows if is_table else None
