"""Cells of an experiment that were not run, and why.

The reasons are in the metadata of a system's Parquet tables, so a table is never without them.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

_METADATA_KEY = "needlework_not_run"
SCHEMA = {
    "system": pl.String,
    "task": pl.String,
    "length": pl.Int64,
    "reason": pl.String,
    "detail": pl.String,
}
OUT_OF_MEMORY = "out of memory"
LENGTH_REFUSED = "length refused"
ALL_REFUSED = "every prompt refused"
LOW_ACCURACY = "accuracy below min_accuracy"


@dataclass(frozen=True)
class SkippedCell:
    """Why a system was not run on a task at a length, or could not answer there."""

    system: str
    task: str
    length: int
    reason: str
    """OUT_OF_MEMORY, LENGTH_REFUSED, ALL_REFUSED or LOW_ACCURACY."""
    detail: str
    """A sentence with the length and the numbers behind the reason."""


def write(table: pl.DataFrame, path: str | Path, cells: Iterable[SkippedCell]) -> None:
    """Write `table` with the cells that have no rows in it in the metadata."""
    records = json.dumps([asdict(cell) for cell in cells])
    table.write_parquet(path, metadata={_METADATA_KEY: records})


def read(paths: Iterable[str | Path]) -> pl.DataFrame:
    """The cells that the tables at `paths` lack: system, task, length, reason, detail."""
    records = [pl.read_parquet_metadata(path).get(_METADATA_KEY, "[]") for path in paths]
    return pl.DataFrame([cell for record in records for cell in json.loads(record)], schema=SCHEMA)
