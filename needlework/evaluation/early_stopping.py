"""Lengths climbed one after the other: when a system stops, and what it leaves on record."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from needlework.tables import skipped
from needlework.tables.skipped import FLOOR, Skipped


class Stopped(Exception):
    """A cell that is not run, with its reason and detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def climb(
    answer: Callable[[], Iterable[pl.DataFrame]],
    paths: Sequence[str | Path],
    empty: Iterable[pl.DataFrame],
    *,
    cell: tuple[str, str, int],
    early_stopping: dict[str, Any] | None,
    before: Sequence[str | Path],
    scores_before: Sequence[str | Path],
) -> None:
    """Write the tables that `answer` gives, or tables without rows that say why there are none.

    Args:
        answer: makes the tables of a cell; stops the climb by `Stopped`.
        paths: where they go, in their order.
        empty: the same tables without a row.
        cell: system, task, length.
        early_stopping: metric and floor of `look_back`; None: the system climbs none.
        before, scores_before: predictions and scores of `look_back`.
    """
    try:
        if early_stopping is not None:
            look_back(before, scores_before, **early_stopping)
        tables = list(answer())
    except Stopped as why:
        record = Skipped(*cell, why.reason, why.detail)
        for path, table in zip(paths, empty, strict=True):
            record.write(table, path)
    else:
        for path, table in zip(paths, tables, strict=True):
            table.write_parquet(path)


def look_back(
    predictions: Sequence[str | Path],
    scores: Sequence[str | Path],
    metric: str,
    min_accuracy: float,
) -> None:
    """Whether the same system and task may be asked at the next length.

    Args:
        predictions: of the length before; empty for the first.
        scores: of the one or two lengths before, ascending.
        metric: the task's own.
        min_accuracy: accuracy, 0-1.

    Raises:
        Stopped: it stopped before, or its accuracy was below the floor at both lengths.
    """
    for row in skipped.read(predictions).iter_rows(named=True):
        raise Stopped(row["reason"], row["detail"])
    if len(scores) < 2:
        return
    tables = [pl.read_parquet(path) for path in scores]
    means = [table[metric].mean() for table in tables]
    if all(mean is not None and mean < min_accuracy for mean in means):
        at = " and ".join(f"{table['length'][0]:,}" for table in tables)
        told = " and ".join(f"{100 * mean:.1f} %" for mean in means)
        raise Stopped(
            FLOOR, f"accuracy of {told} at {at}, below the floor of {100 * min_accuracy:g} %"
        )
