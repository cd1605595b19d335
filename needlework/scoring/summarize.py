"""From one row an answer to one row a cell, with intervals."""

import polars as pl

from needlework.scoring.intervals import wilson
from needlework.scoring.metrics import METRICS
from needlework.scoring.pairing import KEYS, answered, pair
from needlework.tables.columns import require

_ROW = ["system", *KEYS]
_NEEDLES = ["needle_depths", "needle_found"]
_CELL = ["system", "task", "length", "depth_percent", "metric"]
_MEASURED = ["prefill_density", "decode_density", "cache_bytes"]
_MOST_DEPTHS = 25


def summarize(
    scores: pl.DataFrame, predictions: pl.DataFrame, skip_reason: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Accuracy and measured densities of every cell, and of all its depths together.

    Args:
        scores: system, task, length, sample, needle_depths, needle_found, and the metrics, as
            `score` makes them; any number of systems and tasks.
        predictions: system, task, length, sample, prefill_density, decode_density, cache_bytes
            (null where not measured), status (not ok: there is no answer, which counts as wrong;
            null, or no such column: ok).
        skip_reason: system, task, length, reason, detail of cells without answers.

    Returns:
        system, task, length (tokens), depth_percent (0-100; null: all depths), metric (all, part,
        exact, rouge_l, token_f1; without rows where it is null), n, accuracy (0-1), ci_low, ci_high
        (95 %, `intervals.wilson`), the means prefill_density, decode_density (0-1), cache_bytes,
        answered, how many of the n are answers, their own accuracy_answered (null where there is
        none), and skip_reason: null, but for a last row of each cell that was not run, which has the
        reason there, n 0, and depth, metric and numbers null. Systems and tasks stand in the order
        of `scores`, then length, depth (all depths first) and metric.

        n counts answers. Only at a depth of a task that asks for several needles it counts
        needles, each as if on its own: accuracy is then the share found, and `all` is the only
        metric. Where a task has more than 25 different depths they are put in tenths, and
        depth_percent is the middle of one (5, 15, ... 95; 5 is 0 to below 10, 95 is 90 to 100).

    Raises:
        ValueError: if the rows of the two tables do not match one to one; no cell was run.
    """
    if scores.is_empty() and skip_reason is not None and len(skip_reason):
        why = "{system}, {task} at {length:,}: {reason}: {detail}".format(
            **skip_reason.row(0, named=True)
        )
        raise ValueError(f"none of {len(skip_reason)} cells was answered; {why}")
    require(scores, [*_ROW, *METRICS, *_NEEDLES], "scores")
    require(predictions, [*_ROW, *_MEASURED], "predictions")
    rows = pair(
        scores.select(*_ROW, *METRICS, *_NEEDLES),
        predictions.select(*_ROW, pl.col(_MEASURED).cast(pl.Float64), answered(predictions)),
        ("scores", "predictions"),
        _ROW,
    )
    order = {key: pl.Enum(rows[key].unique(maintain_order=True)) for key in ("system", "task")}
    order["metric"] = pl.Enum(list(METRICS))
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
        .cast(order)
        .sort(*_CELL, "sample", nulls_last=False)
        .group_by(_CELL, maintain_order=True)
        # Means of lists are summed in order: equal bytes with any number of threads.
        .agg(
            n=pl.len(),
            accuracy=pl.col("score"),
            answered=pl.col("answered").sum(),
            accuracy_answered=pl.col("score").filter("answered"),
            **{key: pl.col(key) for key in _MEASURED},
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
        skip_reason=pl.lit(None, dtype=pl.String),
    ).pipe(_with_gaps, skip_reason)


def _with_gaps(summary: pl.DataFrame, skip_reason: pl.DataFrame | None) -> pl.DataFrame:
    """A row more for each cell that was not run."""
    if skip_reason is None or skip_reason.is_empty():
        return summary
    why = pl.format("{}: {}", "reason", "detail")
    gaps = skip_reason.select(
        "system", "task", "length", n=pl.lit(0, dtype=pl.Int64), skip_reason=why
    )
    return pl.concat([summary, gaps], how="diagonal")


def over_lengths(summary: pl.DataFrame) -> pl.DataFrame:
    """Accuracy at each depth of a summary, all lengths together.

    Args:
        summary: as `summarize` makes it; rows of all depths together are left out.

    Returns:
        system, task, depth_percent, metric, n (of all lengths), accuracy (0-1), ci_low, ci_high (95 %,
        `intervals.wilson`), in the order of `summary`.
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


def _long(rows: pl.DataFrame) -> pl.DataFrame:
    """A row an answer and metric."""
    return rows.unpivot(
        on=list(METRICS),
        index=[*_ROW, "depth_percent", *_MEASURED, "answered"],
        variable_name="metric",
        value_name="score",
    )


def _by_answer(rows: pl.DataFrame) -> pl.DataFrame:
    """A row an answer with a depth, and metric."""
    depth = pl.col("needle_depths").list.first()
    return _long(rows.with_columns(depth_percent=depth).drop_nulls("depth_percent"))


def _by_needle(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a needle with a depth."""
    return (
        rows.explode(_NEEDLES)
        .drop_nulls("needle_depths")
        .select(
            *_ROW,
            pl.col("needle_depths").alias("depth_percent"),
            *_MEASURED,
            "answered",
            metric=pl.lit("all"),
            score=pl.col("needle_found").cast(pl.Float64),
        )
    )


def _in_tenths(rows: pl.DataFrame) -> pl.DataFrame:
    depth = pl.col("depth_percent")
    middle = 10 * (depth // 10).clip(upper_bound=9) + 5
    many = depth.n_unique().over("task") > _MOST_DEPTHS
    return rows.with_columns(pl.when(many).then(middle).otherwise(depth).alias("depth_percent"))
