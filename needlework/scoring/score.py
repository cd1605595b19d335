"""Predictions and samples in, one row of scores a prediction out."""

import polars as pl

from needlework.scoring.metrics import METRICS
from needlework.scoring.pairing import KEYS, pair, require


def score(samples: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """Score the predictions of one system.

    Args:
        samples: task, length, sample, outputs (list of references), value_type, needles (list of
            structs, the asked one first; its depth_percent is the sample's).
        predictions: system, task, length, sample, prediction.

    Returns:
        One row a prediction, in the order of `predictions`: system, task, length, sample,
        depth_percent (0-100, null where the task has no needle), all, part, exact (each 0-1).

    Raises:
        ValueError: if the rows of the two tables do not match one to one by task, length and
            sample, or a sample has no reference.
    """
    require(samples, [*KEYS, "outputs", "value_type", "needles"], "samples")
    require(predictions, ["system", *KEYS, "prediction"], "predictions")
    rows = pair(
        predictions.select("system", *KEYS, "prediction"),
        samples.select(*KEYS, "outputs", "value_type", depth_percent=_asked_depth(samples)),
        ("predictions", "samples"),
    )
    scores = {name: [] for name in METRICS}
    for row in rows.iter_rows(named=True):
        where = f"task {row['task']}, length {row['length']}, sample {row['sample']}"
        if not row["outputs"]:
            raise ValueError(
                f"samples: {where} has no reference in outputs; make the samples again"
            )
        if row["prediction"] is None:
            raise ValueError(f"predictions: {where} has no prediction; evaluate the system again")
        for name, metric in METRICS.items():
            try:
                scores[name].append(metric(row["prediction"], row["outputs"], row["value_type"]))
            except ValueError as error:
                raise ValueError(f"samples: {where}: {error}") from None
    return rows.select("system", *KEYS, "depth_percent").with_columns(
        pl.Series(name, values, dtype=pl.Float64) for name, values in scores.items()
    )


def _asked_depth(samples: pl.DataFrame) -> pl.Expr | pl.Series:
    if not isinstance(samples.schema["needles"], pl.List) or not isinstance(
        samples.schema["needles"].inner, pl.Struct
    ):
        return pl.lit(None, dtype=pl.Float64)
    first = pl.col("needles").list.first()
    return first.struct.field("depth_percent").cast(pl.Float64)
