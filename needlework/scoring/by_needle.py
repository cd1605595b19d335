"""Accuracy of each needle, in tasks that ask for several."""

import polars as pl

from needlework.scoring.intervals import wilson
from needlework.scoring.pairing import SAMPLE_KEYS
from needlework.tables.columns import require

_LISTS = ["needle", "needle_keys", "needle_found"]
_CELL = ["system", "task", "length", "needle"]


def by_needle(scores: pl.DataFrame) -> pl.DataFrame:
    """How often each needle is found, in tasks that ask for several.

    Args:
        scores: system, task, length, sample, needle_keys, needle_found, from `score`; any number
            of systems and tasks.

    Returns:
        system, task, length (tokens), needle (1 is the first in the question), key (null unless it
        is the same in every sample of the task), n (answers), accuracy (share with this needle,
        0-1), ci_low, ci_high (95 %, `intervals.wilson`), by system and task in the
        order of `scores`, then length and needle. No rows if no task asks for several.
    """
    require(scores, ["system", *SAMPLE_KEYS, "needle_keys", "needle_found"], "scores")
    order = {key: pl.Enum(scores[key].unique(maintain_order=True)) for key in ("system", "task")}
    count = pl.col("needle_found").list.len()
    key = pl.col("needle_keys")
    cells = (
        scores.filter((count > 1).any().over("task"))
        .with_columns(needle=pl.int_ranges(1, count.cast(pl.Int64) + 1))
        .select("system", "task", "length", *_LISTS)
        .explode(_LISTS)
        .drop_nulls("needle")
        .with_columns(key=pl.when(key.n_unique().over("task", "needle") == 1).then(key))
        .with_columns(pl.col(key).cast(dtype) for key, dtype in order.items())
        .sort(_CELL)
        .group_by(_CELL, maintain_order=True)
        .agg(
            pl.col("key").first(), n=pl.len().cast(pl.Int64), accuracy=pl.col("needle_found").mean()
        )
    )
    low, high = wilson(cells["accuracy"].to_numpy(), cells["n"].to_numpy())
    return cells.select(
        pl.col("system", "task").cast(pl.String),
        "length",
        "needle",
        "key",
        "n",
        "accuracy",
        pl.Series("ci_low", low),
        pl.Series("ci_high", high),
    )
