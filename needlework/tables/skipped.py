"""Cells of an experiment that were not run, and why: tables without rows that say so themselves.

The reason lies in the Parquet file's own metadata, so a cell has the same files whether it ran or
not, and a table is never without its reason.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

_KEY = "needlework_not_run"
SCHEMA = {
    "system": pl.String,
    "task": pl.String,
    "length": pl.Int64,
    "reason": pl.String,
    "detail": pl.String,
}
MEMORY, LENGTH, FLOOR = "out of memory", "length refused", "accuracy below the floor"
REFUSED = "every prompt refused"


@dataclass(frozen=True)
class Skipped:
    """Why a system was not asked, or could not answer, a task at a length."""

    system: str
    task: str
    length: int
    reason: str
    """MEMORY, LENGTH, REFUSED or FLOOR."""
    detail: str
    """A sentence: at which length, with which numbers."""

    def write(self, table: pl.DataFrame, path: str | Path) -> None:
        """Write `table`, which has columns and no rows, with this in its metadata."""
        table.clear().write_parquet(path, metadata={_KEY: json.dumps(asdict(self))})


def read(paths: Iterable[str | Path]) -> pl.DataFrame:
    """A row a table that was not run: system, task, length, reason, detail."""
    told = (pl.read_parquet_metadata(path).get(_KEY) for path in paths)
    return pl.DataFrame([json.loads(one) for one in told if one], schema=SCHEMA)
