"""From one row an answer to one row a cell, with intervals."""

import polars as pl

from needlework.scoring.intervals import wilson
from needlework.scoring.metrics import METRICS
from needlework.scoring.pairing import KEYS, pair, require

_ROW = ["system", *KEYS]
_CELL = ["system", "task", "length", "depth_percent", "metric"]
_MEASURED = ["prefill_density", "decode_density", "cache_bytes"]


def summarize(scores: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """Accuracy and measured densities of every cell, and of all its depths together.

    Args:
        scores: system, task, length, sample, depth_percent, all, part, exact; any number of
            systems and tasks.
        predictions: system, task, length, sample, prefill_density, decode_density, cache_bytes
            (null where not measured).

    Returns:
        system, task, length (tokens), depth_percent (0-100; null: all depths), metric (all, part,
        exact), n (answers), accuracy (0-1), low, high (95 %, `intervals.wilson`), and the means
        prefill_density, decode_density (0-1), cache_bytes. Systems and tasks stand in the order
        of `scores`, then length, depth (all depths first) and metric.

    Raises:
        ValueError: if the rows of the two tables do not match one to one.
    """
    require(scores, [*_ROW, "depth_percent", *METRICS], "scores")
    require(predictions, [*_ROW, *_MEASURED], "predictions")
    rows = pair(
        scores.select(*_ROW, pl.col("depth_percent").cast(pl.Float64), *METRICS),
        predictions.select(*_ROW, pl.col(_MEASURED).cast(pl.Float64)),
        ("scores", "predictions"),
        _ROW,
    )
    order = {key: pl.Enum(rows[key].unique(maintain_order=True)) for key in ("system", "task")}
    order["metric"] = pl.Enum(list(METRICS))
    rows = rows.unpivot(
        on=list(METRICS),
        index=[*_ROW, "depth_percent", *_MEASURED],
        variable_name="metric",
        value_name="score",
    ).cast(order)
    everywhere = rows.with_columns(depth_percent=pl.lit(None, dtype=pl.Float64))
    cells = (
        pl.concat([everywhere, rows.drop_nulls("depth_percent")])
        .sort(*_CELL, "sample", nulls_last=False)
        .group_by(_CELL, maintain_order=True)
        # Means of lists are summed in order: equal bytes with any number of threads.
        .agg(n=pl.len(), accuracy=pl.col("score"), **{key: pl.col(key) for key in _MEASURED})
        .with_columns(pl.col("accuracy", *_MEASURED).list.drop_nulls().list.mean())
    )
    low, high = wilson(cells["accuracy"].to_numpy(), cells["n"].to_numpy())
    return cells.select(
        pl.col("system", "task").cast(pl.String),
        "length",
        "depth_percent",
        pl.col("metric").cast(pl.String),
        pl.col("n").cast(pl.Int64),
        "accuracy",
        pl.Series("low", low),
        pl.Series("high", high),
        *_MEASURED,
    )
