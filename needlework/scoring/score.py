"""Predictions and samples in, one row of scores a prediction out."""

from typing import Any, get_args

import polars as pl

from needlework.reasoning.tags import strip_reasoning
from needlework.scoring.metrics import METRICS, EvaluationJob, found
from needlework.scoring.pairing import KEYS, pair
from needlework.tables.columns import require

_SCHEMA = {
    "depth_percent": pl.Float64,
    **dict.fromkeys(METRICS, pl.Float64),
    "needle_keys": pl.List(pl.String),
    "needle_depths": pl.List(pl.Float64),
    "needle_found": pl.List(pl.Boolean),
}


def score(
    samples: pl.DataFrame, predictions: pl.DataFrame, metric: EvaluationJob, has_depths: bool
) -> pl.DataFrame:
    """Score the predictions of one system on one task, thought text left out.

    Args:
        samples: task, length, sample, outputs (list of references), value_type, needles (list of
            structs with key and depth_percent: needles[j] is where outputs[j] stands, or under
            metric `part` needles[0] where the answer does).
        predictions: system, task, length, sample, prediction.
        metric: the task's own, `all` (every output is asked for) or `part` (they are alternatives).
        has_depths: whether answers of the task stand at depths.

    Returns:
        One row a prediction, in the order of `predictions`: system, task, length, sample,
        depth_percent (0-100, of the first needle; null where there is none), all, part, exact,
        rouge_l, token_f1 (each 0-1, the last two null unless value_type is text), and lists with
        an entry a needle asked for: needle_keys, needle_depths (0-100), needle_found. A needle
        is an output under metric `all`; under `part` there is one, found if any output is.

    Raises:
        ValueError: if the rows of the two tables do not match one to one by task, length and
            sample, or a sample has no reference, or fewer needles than it asks for.
    """
    if metric not in get_args(EvaluationJob):
        raise ValueError(f"metric {metric!r}: must be one of {', '.join(get_args(EvaluationJob))}")
    require(samples, [*KEYS, "outputs", "value_type", "needles"], "samples")
    require(predictions, ["system", *KEYS, "prediction"], "predictions")
    rows = pair(
        predictions.select("system", *KEYS, "prediction"),
        samples.select(*KEYS, "outputs", "value_type", "needles"),
        ("predictions", "samples"),
    )
    scored = []
    for row in rows.iter_rows(named=True):
        where = f"task {row['task']}, length {row['length']}, sample {row['sample']}"
        if not row["outputs"]:
            raise ValueError(
                f"samples: {where} has no reference in outputs; make the samples again"
            )
        if row["prediction"] is None:
            raise ValueError(f"predictions: {where} has no prediction; evaluate the system again")
        answer = strip_reasoning(row["prediction"])
        try:
            scores = {
                name: judge(answer, row["outputs"], row["value_type"], metric)
                for name, judge in METRICS.items()
            }
            needles = (row["needles"] or []) if has_depths else []
            scored.append(scores | _by_needle(answer, row["outputs"], needles, metric))
        except ValueError as error:
            raise ValueError(f"samples: {where}: {error}") from None
    return pl.concat(
        [rows.select("system", *KEYS), pl.DataFrame(scored, schema=_SCHEMA)], how="horizontal"
    )


def unscored() -> pl.DataFrame:
    """The table of `score` without a row."""
    keys = {"system": pl.String, "task": pl.String, "length": pl.Int64, "sample": pl.Int64}
    return pl.DataFrame(schema=keys | _SCHEMA)


def _by_needle(
    answer: str, outputs: list[str], needles: list[dict[str, Any]], metric: EvaluationJob
) -> dict[str, Any]:
    """The columns of `score` on needles, of one answer."""
    hits = found(answer, outputs) if metric == "all" else [any(found(answer, outputs))]
    if needles and len(needles) < len(hits):
        raise ValueError(
            f"has fewer needles ({len(needles)}) than outputs ({len(hits)}); make the samples again"
        )
    asked = needles[: len(hits)]
    return {
        "depth_percent": asked[0]["depth_percent"] if asked else None,
        "needle_keys": [needle["key"] for needle in asked],
        "needle_depths": [needle["depth_percent"] for needle in asked],
        "needle_found": hits if asked else [],
    }
