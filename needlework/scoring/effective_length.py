"""Effective length: the longest context in which a system's score still reaches a threshold."""

from collections.abc import Mapping
from math import hypot
from typing import Any

import polars as pl

from needlework.scoring.intervals import wilson

_SCHEMA = {
    "system": pl.String,
    "criterion": pl.String,
    "reference_length": pl.Int64,
    "threshold": pl.Float64,
    "effective_length": pl.Int64,
    "ci_low": pl.Int64,
    "ci_high": pl.Int64,
    "longest_length": pl.Int64,
}
_ROUNDING = 1e-9


def mean_scores(summary: pl.DataFrame, metrics: Mapping[str, str] | None = None) -> pl.DataFrame:
    """The mean over tasks of their accuracies, the score that RULER reports.

    Args:
        summary: the table from `summarize`; rows of single depths are ignored.
        metrics: the metric of each task, by default `all`.

    Returns:
        system, length, tasks (how many), n (answers of all tasks), score (0-1), ci_low, ci_high
        (95 %), systems in the order of `summary`, then by length; score and bounds are null if a
        task was not run at this length.

        The interval is `intervals.wilson` for tasks * (n of the smallest task) answers. It is
        conservative if tasks differ, because p (1 - p) is concave: answers to different tasks vary
        less than as many answers to one task of the mean accuracy.
    """
    task_metric = pl.col("task").replace_strict(
        metrics or {}, default="all", return_dtype=pl.String
    )
    skipped = pl.col("skip_reason").is_not_null()
    cells = summary.filter(
        skipped | (pl.col("depth_percent").is_null() & (pl.col("metric") == task_metric))
    )
    complete = pl.col("accuracy").null_count() == 0
    order = pl.Enum(summary["system"].unique(maintain_order=True))
    means = (
        cells.sort("task")  # fixed order of summation: equal bytes with any number of threads
        .group_by(pl.col("system").cast(order), "length", maintain_order=True)
        .agg(
            tasks=pl.len().cast(pl.Int64),
            n=pl.col("n").sum(),
            score=pl.when(complete).then(pl.col("accuracy").mean()),
            balanced_n=pl.when(complete).then(pl.len() * pl.col("n").min()),
        )
        .sort("system", "length")
        .cast({"system": pl.String})
    )
    low, high = wilson(means["score"].to_numpy(), means["balanced_n"].to_numpy())
    return means.drop("balanced_n").with_columns(
        ci_low=pl.Series(low).fill_nan(None), ci_high=pl.Series(high).fill_nan(None)
    )


def effective_lengths(means: pl.DataFrame, score: float, share: float) -> pl.DataFrame:
    """The longest length at which each system's score reaches a threshold.

    Args:
        means: the table from `mean_scores`.
        score: threshold of criterion `score`, 0-1; RULER's is 0.856.
        share: threshold of criterion `share`, as a share of the system's score at the shortest
            length; NoLiMa's is 0.85.

    Returns:
        Two rows per system: system, criterion (`score` or `share`), reference_length (the shortest
        length; `share` only), threshold (0-1; null if the reference score is 0 or was not
        measured), effective_length (the longest whose score reaches the threshold; null: none),
        ci_low, ci_high (the longest whose lower and upper 95 % bound reach it) and longest_length
        (tested; the effective length may be longer if they are equal).

        The interval of a score minus a share of another combines both by the squares of their arms
        (Zou and Donner, 2008).
    """
    rows = []
    for (system,), table in means.group_by("system", maintain_order=True):
        lengths = table.to_dicts()
        reference = lengths[0]
        threshold = share * reference["score"] if reference["score"] else None
        rows.append({"criterion": "score", "threshold": score} | _longest(lengths, score))
        rows.append(
            {
                "criterion": "share",
                "reference_length": reference["length"],
                "threshold": threshold,
            }
            | _longest(lengths, threshold, share, reference)
        )
        for row in rows[-2:]:
            row |= {"system": system, "longest_length": lengths[-1]["length"]}
    return pl.DataFrame(rows, schema=_SCHEMA)


def _longest(
    lengths: list[dict[str, Any]],
    threshold: float | None,
    share: float = 0.0,
    reference: dict[str, Any] | None = None,
) -> dict[str, int | None]:
    """The last of ascending lengths whose score, lower bound and upper bound reach the threshold.

    With `reference`, the threshold is `share` of its score, and its interval counts too.
    """
    longest: dict[str, int | None] = dict.fromkeys(("ci_low", "effective_length", "ci_high"))
    if threshold is None:
        return longest
    for row in lengths:
        if row["score"] is None:
            continue
        down, up = row["score"] - row["ci_low"], row["ci_high"] - row["score"]
        if reference is not None:
            down = hypot(down, share * (reference["ci_high"] - reference["score"]))
            up = hypot(up, share * (reference["score"] - reference["ci_low"]))
        margin = row["score"] - threshold + _ROUNDING
        if row is reference:
            down = up = 0.0  # certain: the threshold is a share of this score
        for name, distance in (
            ("ci_low", margin - down),
            ("effective_length", margin),
            ("ci_high", margin + up),
        ):
            if distance >= 0:
                longest[name] = row["length"]
    return longest
