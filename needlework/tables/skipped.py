"""Cells of an experiment that were not run, and why.

The reason is in the metadata of the cell's empty Parquet tables, so a cell has the same files
whether it was run or not, and a table is never without its reason.
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

    def write(self, table: pl.DataFrame, path: str | Path) -> None:
        """Write the columns of `table` without rows, with this cell in the metadata."""
        table.clear().write_parquet(path, metadata={_METADATA_KEY: json.dumps(asdict(self))})


def read(paths: Iterable[str | Path]) -> pl.DataFrame:
    """The tables at `paths` that were not run: system, task, length, reason, detail."""
    records = (pl.read_parquet_metadata(path).get(_METADATA_KEY) for path in paths)
    return pl.DataFrame([json.loads(record) for record in records if record], schema=SCHEMA)
