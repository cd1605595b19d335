"""How much of a context a system really uses: its effective length."""

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
    """What RULER quotes: the mean over tasks of their accuracies.

    Args:
        summary: as `summarize` makes it; rows of one depth are left out.
        metrics: the metric of each task; `all` for a task not named.

    Returns:
        system, length, tasks (how many), n (answers of all), score (0-1), ci_low, ci_high (95 %), systems
        in the order of `summary`, then by length; score, ci_low and ci_high are null where a task was not
        run.

        The interval is `intervals.wilson` of as many answers as the tasks have together, the task
        with the fewest counting for all. It is conservative where tasks differ, as p (1 - p) is
        concave: answers to them then spread less than as many to one task of the mean accuracy.
    """
    own = pl.col("task").replace_strict(metrics or {}, default="all", return_dtype=pl.String)
    missing = pl.col("skip_reason").is_not_null()
    cells = summary.filter(
        missing | (pl.col("depth_percent").is_null() & (pl.col("metric") == own))
    )
    whole = pl.col("accuracy").null_count() == 0
    order = pl.Enum(summary["system"].unique(maintain_order=True))
    means = (
        cells.sort("task")  # sums in one order: equal bytes with any number of threads
        .group_by(pl.col("system").cast(order), "length", maintain_order=True)
        .agg(
            tasks=pl.len().cast(pl.Int64),
            n=pl.col("n").sum(),
            score=pl.when(whole).then(pl.col("accuracy").mean()),
            alike=pl.when(whole).then(pl.len() * pl.col("n").min()),
        )
        .sort("system", "length")
        .cast({"system": pl.String})
    )
    low, high = wilson(means["score"].to_numpy(), means["alike"].to_numpy())
    return means.drop("alike").with_columns(
        ci_low=pl.Series(low).fill_nan(None), ci_high=pl.Series(high).fill_nan(None)
    )


def effective_lengths(means: pl.DataFrame, score: float, share: float) -> pl.DataFrame:
    """The longest lengths at which systems still reach a score.

    Args:
        means: as `mean_scores` makes them.
        score: to reach, 0-1; RULER's is 0.856.
        share: of a system's own score at the shortest length, to reach; NoLiMa's is 0.85.

    Returns:
        Two rows a system: system, criterion (`score` or `share`), reference_length (the shortest length; of
        `share` alone), threshold (0-1; null: its score there is 0, or was not measured),
        effective_length (the longest whose score is not below threshold; null: none),
        ci_low, ci_high (the longest whose 95 % interval lies wholly, and in part, not below) and
        longest_length (tested: the effective length may be longer where they are equal).

        The interval of a score less the share of another joins those of both by the squares of
        their arms (Zou and Donner, 2008).
    """
    rows = []
    for (system,), table in means.group_by("system", maintain_order=True):
        lengths = table.to_dicts()
        base = lengths[0]
        of_base = share * base["score"] if base["score"] else None
        rows.append({"criterion": "score", "threshold": score} | _longest(lengths, score))
        rows.append(
            {"criterion": "share", "reference_length": base["length"], "threshold": of_base}
            | _longest(lengths, of_base, share, base)
        )
        for row in rows[-2:]:
            row |= {"system": system, "longest_length": lengths[-1]["length"]}
    return pl.DataFrame(rows, schema=_SCHEMA)


def _longest(
    lengths: list[dict[str, Any]],
    threshold: float | None,
    share: float = 0.0,
    base: dict[str, Any] | None = None,
) -> dict[str, int | None]:
    """Of lengths in order, the last whose score, lower and upper bound are not below the threshold,
    which is a share of the score of `base`, if given."""
    found = dict.fromkeys(("ci_low", "effective_length", "ci_high"))
    if threshold is None:
        return found
    for row in lengths:
        if row["score"] is None:
            continue
        down, up = row["score"] - row["ci_low"], row["ci_high"] - row["score"]
        if base is not None:
            down = hypot(down, share * (base["ci_high"] - base["score"]))
            up = hypot(up, share * (base["score"] - base["ci_low"]))
        above = row["score"] - threshold + _ROUNDING
        if row is base:
            down = up = 0.0  # it is what the threshold is a share of
        for name, distance in (
            ("ci_low", above - down),
            ("effective_length", above),
            ("ci_high", above + up),
        ):
            if distance >= 0:
                found[name] = row["length"]
    return found
