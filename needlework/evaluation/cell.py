"""A cell: the samples of one task at one length, or a shard of them, read when they are needed."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl


@dataclass(frozen=True)
class Cell:
    """Rows of a table of samples."""

    path: str
    """Parquet file of one task at one length."""
    start: int = 0
    stop: int | None = None
    """Rows start to stop; None: to the end."""

    @cached_property
    def _place(self) -> tuple[str, int]:
        first = pl.scan_parquet(self.path).select("task", "length").head(1).collect()
        if first.is_empty():
            raise ValueError(f"{self.path}: no samples; make the table again")
        task, length = first.row(0)
        return task, length

    @property
    def task(self) -> str:
        """The task's name in the experiment."""
        return self._place[0]

    @property
    def length(self) -> int:
        """Length of the prompts, in the experiment's unit."""
        return self._place[1]

    def read(self, columns: list[str] | None = None) -> pl.DataFrame:
        """The samples, or those of the columns that the table has."""
        if columns is not None:
            columns = [name for name in pl.read_parquet_schema(self.path) if name in columns]
        return pl.read_parquet(self.path, columns=columns)[self.start : self.stop]


def shard_of(paths: Iterable[str | Path], shard: int, shards: int, whole_tasks: bool) -> list[Cell]:
    """The cells, or parts of cells, that one of several jobs answers.

    Args:
        paths: tables of samples.
        shard: number of the job, from 0.
        shards: number of jobs.
        whole_tasks: deal out tasks; each job then knows the accuracy at shorter lengths. Otherwise
            every job gets an equal share of the samples of each cell.
    """
    cells = [Cell(str(path)) for path in paths]
    if whole_tasks:
        tasks = list(dict.fromkeys(cell.task for cell in cells))[shard::shards]
        return [cell for cell in cells if cell.task in tasks]
    parts = []
    for cell in cells:
        count = pl.scan_parquet(cell.path).select(pl.len()).collect().item()
        start, stop = (number * count // shards for number in (shard, shard + 1))
        parts += [Cell(cell.path, start, stop)] if start < stop else []
    return parts
