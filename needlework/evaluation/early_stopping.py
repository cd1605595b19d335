"""Early stopping: evaluate lengths in ascending order, and stop a system that fails at one."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from needlework.tables import skipped
from needlework.tables.skipped import LOW_ACCURACY, SkippedCell


class EarlyStop(Exception):
    """Raised where a cell, and with it all greater lengths, is skipped."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def write_unless_stopped(
    answer: Callable[[], Iterable[pl.DataFrame]],
    paths: Sequence[str | Path],
    empty: Iterable[pl.DataFrame],
    *,
    cell: tuple[str, str, int],
    early_stopping: dict[str, Any] | None,
    shorter_predictions: Sequence[str | Path],
    shorter_scores: Sequence[str | Path],
) -> None:
    """Write the tables that `answer` returns, or empty tables that record why it was stopped.

    Args:
        answer: makes the tables of a cell; may raise EarlyStop.
        paths: output files, in the order of the tables.
        empty: the same tables without rows.
        cell: system, task, length.
        early_stopping: metric and min_accuracy of `require_accuracy`; None: no early stopping.
        shorter_predictions, shorter_scores: predictions and scores of `require_accuracy`.
    """
    try:
        if early_stopping is not None:
            require_accuracy(shorter_predictions, shorter_scores, **early_stopping)
        tables = list(answer())
    except EarlyStop as stop:
        record = SkippedCell(*cell, stop.reason, stop.detail)
        for path, table in zip(paths, empty, strict=True):
            record.write(table, path)
    else:
        for path, table in zip(paths, tables, strict=True):
            table.write_parquet(path)


def require_accuracy(
    predictions: Sequence[str | Path],
    scores: Sequence[str | Path],
    metric: str,
    min_accuracy: float,
) -> None:
    """Stop if the same system and task failed at the shorter lengths.

    Args:
        predictions: files of the previous length; empty for the first.
        scores: files of the previous one or two lengths, ascending.
        metric: the task's metric.
        min_accuracy: fraction of correct answers, 0-1.

    Raises:
        EarlyStop: a shorter length was skipped, or accuracy was below `min_accuracy` at the
            previous two.
    """
    for row in skipped.read(predictions).iter_rows(named=True):
        raise EarlyStop(row["reason"], row["detail"])
    if len(scores) < 2:
        return
    tables = [pl.read_parquet(path) for path in scores]
    means = [_mean(table[metric]) for table in tables]
    if all(mean < min_accuracy for mean in means):
        lengths = " and ".join(f"{table['length'][0]:,}" for table in tables)
        accuracies = " and ".join(f"{100 * mean:.1f} %" for mean in means)
        raise EarlyStop(
            LOW_ACCURACY,
            f"accuracy {accuracies} at {lengths}, below min_accuracy {100 * min_accuracy:g} %",
        )


def _mean(scores: pl.Series) -> float:
    """Mean of scores in 0-1; infinite where there are none, so that it is never too low."""
    mean = scores.mean()
    return float(mean) if isinstance(mean, int | float) else float("inf")
