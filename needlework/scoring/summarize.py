"""Aggregate scores by cell, with intervals."""

import polars as pl

from needlework.scoring.intervals import wilson
from needlework.scoring.metrics import COLUMNS, METRICS
from needlework.scoring.pairing import SAMPLE_KEYS, answered, pair
from needlework.tables.columns import require

_ANSWER = ["system", *SAMPLE_KEYS]
_NEEDLES = ["needle_depths", "needle_found"]
_CELL = ["system", "task", "length", "depth_percent", "metric"]
_MEASURED = [
    *("prefill_density", "decode_density"),
    *("sparse_layers_prefill_density", "sparse_layers_decode_density", "cache_bytes"),
]
_OUTCOMES = ("truncated_thought", "empty")
_MAX_DEPTHS = 25


def summarize(
    scores: pl.DataFrame, predictions: pl.DataFrame, skipped: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Accuracy and measured densities of every cell, by depth and with all depths pooled.

    Args:
        scores: system, task, length, sample, needle_depths, needle_found, outcome (optional), and
            the metrics, from `score`; any number of systems and tasks.
        predictions: system, task, length, sample, prefill_density, decode_density,
            sparse_layers_prefill_density, sparse_layers_decode_density, cache_bytes (null if not
            measured), status (not ok: no answer, which counts as wrong; null or no such column:
            ok).
        skipped: system, task, length, reason, detail of cells that were not run.

    Returns:
        system, task, length (tokens), depth_percent (0-100; null: all depths), metric (all, part,
        exact, rouge_l, token_f1; no rows for null scores), n, accuracy (0-1), ci_low, ci_high
        (95 %, `intervals.wilson`), means of prefill_density and decode_density (0-1, of the whole
        model), sparse_layers_prefill_density and sparse_layers_decode_density (0-1) and
        cache_bytes, answered (how many of n are answers), accuracy_answered (of those; null if
        there are none), truncated_thought and empty (how many of n ended within their reasoning,
        or have no answer), and skip_reason. Each cell that was not run has one row at the end with
        its skip_reason, n 0, and depth, metric and numbers null; elsewhere skip_reason is null.
        Systems and tasks are in the order of `scores`, then length, depth (all depths first) and
        metric.

        n counts answers, except at a depth of a task that asks for several needles: there it
        counts needles, each as if independent, accuracy is the share found, and `all` is the only
        metric. If a task has more than 25 different depths, they are grouped in tenths, and
        depth_percent is the middle of one (5, 15, ... 95; 5 is 0 to below 10, 95 is 90 to 100).

    Raises:
        ValueError: if the rows of the two tables do not match one to one, or no cell was run.
    """
    if scores.is_empty() and skipped is not None and len(skipped):
        example = "{system}, {task} at {length:,}: {reason}: {detail}".format(
            **skipped.row(0, named=True)
        )
        raise ValueError(f"none of {len(skipped)} cells has an answer; {example}")
    require(scores, [*_ANSWER, *METRICS, *_NEEDLES], "scores")
    require(predictions, [*_ANSWER, *_MEASURED], "predictions")
    if "outcome" not in scores.columns:
        scores = scores.with_columns(outcome=pl.lit(None, dtype=pl.String))
    rows = pair(
        scores.select(*_ANSWER, *_metrics(scores), *_NEEDLES, "outcome"),
        predictions.select(*_ANSWER, pl.col(_MEASURED).cast(pl.Float64), answered(predictions)),
        ("scores", "predictions"),
        _ANSWER,
    )
    order = {key: pl.Enum(rows[key].unique(maintain_order=True)) for key in ("system", "task")}
    order["metric"] = pl.Enum(list(COLUMNS))
    several = (pl.col("needle_found").list.len() > 1).any().over("task")
    cells = (
        pl.concat(
            [
                _long(rows.with_columns(depth_percent=pl.lit(None, dtype=pl.Float64))),
                _in_tenths(
                    pl.concat([_by_answer(rows.filter(~several)), _by_needle(rows.filter(several))])
                ),
            ]
        )
        .drop_nulls("score")
        .with_columns(pl.col(key).cast(dtype) for key, dtype in order.items())
        .sort(*_CELL, "sample", nulls_last=False)
        .group_by(_CELL, maintain_order=True)
        # Means of lists sum in a fixed order: equal bytes with any number of threads.
        .agg(
            n=pl.len(),
            accuracy=pl.col("score"),
            answered=pl.col("answered").sum(),
            accuracy_answered=pl.col("score").filter("answered"),
            **{key: pl.col(key) for key in _MEASURED},
            **{name: (pl.col("outcome") == name).sum() for name in _OUTCOMES},
        )
        .with_columns(
            pl.col("accuracy", "accuracy_answered", *_MEASURED).list.drop_nulls().list.mean()
        )
    )
    low, high = wilson(cells["accuracy"].to_numpy(), cells["n"].to_numpy())
    return cells.select(
        pl.col("system", "task").cast(pl.String),
        "length",
        "depth_percent",
        pl.col("metric").cast(pl.String),
        pl.col("n").cast(pl.Int64),
        "accuracy",
        pl.Series("ci_low", low),
        pl.Series("ci_high", high),
        *_MEASURED,
        pl.col("answered").cast(pl.Int64),
        "accuracy_answered",
        pl.col(_OUTCOMES).cast(pl.Int64),
        skip_reason=pl.lit(None, dtype=pl.String),
    ).pipe(_with_skipped, skipped)


def _with_skipped(summary: pl.DataFrame, skipped: pl.DataFrame | None) -> pl.DataFrame:
    """Add a row for each cell that was not run."""
    if skipped is None or skipped.is_empty():
        return summary
    rows = skipped.select(
        "system",
        "task",
        "length",
        n=pl.lit(0, dtype=pl.Int64),
        skip_reason=pl.format("{}: {}", "reason", "detail"),
    )
    return pl.concat([summary, rows], how="diagonal")


def pool_lengths(summary: pl.DataFrame) -> pl.DataFrame:
    """Accuracy at each depth, all lengths pooled.

    Args:
        summary: the table from `summarize`; rows of all depths are ignored.

    Returns:
        system, task, depth_percent, metric, n (of all lengths), accuracy (0-1), ci_low, ci_high
        (95 %, `intervals.wilson`), in the order of `summary`.
    """
    cells = (
        summary.filter(pl.col("depth_percent").is_not_null())
        .group_by("system", "task", "depth_percent", "metric", maintain_order=True)
        .agg(
            pl.col("n").sum(), accuracy=(pl.col("accuracy") * pl.col("n")).sum() / pl.col("n").sum()
        )
    )
    low, high = wilson(cells["accuracy"].to_numpy(), cells["n"].to_numpy())
    return cells.with_columns(ci_low=pl.Series(low), ci_high=pl.Series(high))


def _metrics(scores: pl.DataFrame) -> list[str]:
    return [column for column in COLUMNS if column in scores.columns]


def _long(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per answer and metric."""
    return rows.unpivot(
        on=_metrics(rows),
        index=[*_ANSWER, "depth_percent", *_MEASURED, "answered", "outcome"],
        variable_name="metric",
        value_name="score",
    )


def _by_answer(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per answer with a depth, and metric."""
    depth = pl.col("needle_depths").list.first()
    return _long(rows.with_columns(depth_percent=depth).drop_nulls("depth_percent"))


def _by_needle(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per needle with a depth."""
    return (
        rows.explode(_NEEDLES)
        .drop_nulls("needle_depths")
        .select(
            *_ANSWER,
            pl.col("needle_depths").alias("depth_percent"),
            *_MEASURED,
            "answered",
            "outcome",
            metric=pl.lit("all"),
            score=pl.col("needle_found").cast(pl.Float64),
        )
    )


def _in_tenths(rows: pl.DataFrame) -> pl.DataFrame:
    depth = pl.col("depth_percent")
    middle = 10 * (depth // 10).clip(upper_bound=9) + 5
    too_many = depth.n_unique().over("task") > _MAX_DEPTHS
    return rows.with_columns(pl.when(too_many).then(middle).otherwise(depth).alias("depth_percent"))
