"""Score predictions against samples, one row per prediction."""

from typing import Any, Literal, get_args

import polars as pl

from needlework.config.models.thought import ThoughtFormat
from needlework.reasoning.formats import outcome, strip_reasoning
from needlework.scoring.metrics import COLUMNS, METRICS, ReferenceMode, contains, prefix_ratio
from needlework.scoring.pairing import SAMPLE_KEYS, pair
from needlework.tables.columns import require

SAMPLE_COLUMNS = [*SAMPLE_KEYS, "outputs", "required_prefix", "value_type", "needles"]
"""Columns of samples that scoring reads."""
_KEYS: dict[str, pl.DataType] = {
    "system": pl.String(),
    "task": pl.String(),
    "length": pl.Int64(),
    "sample": pl.Int64(),
}
_SCORES: dict[str, pl.DataType] = {
    "depth_percent": pl.Float64(),
    **dict.fromkeys(COLUMNS, pl.Float64()),
    "needle_keys": pl.List(pl.String()),
    "needle_depths": pl.List(pl.Float64()),
    "needle_found": pl.List(pl.Boolean()),
    "outcome": pl.String(),
}


def score(
    samples: pl.DataFrame,
    predictions: pl.DataFrame,
    metric: Literal[ReferenceMode, "prefix_ratio"],
    has_depths: bool,
    thought: ThoughtFormat | None = None,
) -> pl.DataFrame:
    """Score the predictions of one system on one task, without their reasoning.

    Args:
        samples: task, length, sample, outputs (list of references), value_type, needles (list of
            structs with key and depth_percent: needles[j] is that of outputs[j], or under metric
            `part` needles[0] is that of the answer).
        predictions: system, task, length, sample, prediction.
        metric: the task's metric, `all` (needs every output), `part` (outputs are alternatives) or
            `prefix_ratio` (of samples with a required_prefix, text that the answer starts with).
        has_depths: whether answers of the task have a depth.
        thought: format of the reasoning; None: any known one.

    Returns:
        One row per prediction, in the order of `predictions`: system, task, length, sample,
        depth_percent (0-100, of the first needle; null without needles), all, part, exact,
        rouge_l, token_f1 (each 0-1, the last two null unless value_type is text), and lists with
        one entry per needle in question: needle_keys, needle_depths (0-100), needle_found. A needle
        is an output under metric `all`; under `part` there is one, found if any output is. outcome
        is answer, empty, or truncated_thought (reasoning that never closed).

    Raises:
        ValueError: if the rows of the two tables do not match one to one by task, length and
            sample, or a sample has no reference or fewer needles than outputs.
    """
    known = (*get_args(ReferenceMode), "prefix_ratio")
    if metric not in known:
        raise ValueError(f"metric {metric!r}: must be one of {', '.join(known)}")
    mode: ReferenceMode = "all" if metric == "prefix_ratio" else metric
    require(samples, [*SAMPLE_KEYS, "outputs", "value_type", "needles"], "samples")
    require(predictions, ["system", *SAMPLE_KEYS, "prediction"], "predictions")
    required_prefix = pl.lit(None, pl.String).alias("required_prefix")
    if "required_prefix" in samples.columns:
        required_prefix = pl.col("required_prefix")
    rows = pair(
        predictions.select("system", *SAMPLE_KEYS, "prediction"),
        samples.select(*SAMPLE_KEYS, "outputs", "value_type", "needles", required_prefix),
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
        answer = strip_reasoning(row["prediction"], thought)
        try:
            scores: dict[str, Any] = {
                name: compute(answer, row["outputs"], row["value_type"], mode)
                for name, compute in METRICS.items()
            }
            scores["prefix_ratio"] = prefix_ratio(answer, row["outputs"], row["required_prefix"])
            scores["outcome"] = outcome(row["prediction"], thought)
            needles = (row["needles"] or []) if has_depths else []
            scored.append(scores | _needle_columns(answer, row["outputs"], needles, mode))
        except ValueError as error:
            raise ValueError(f"samples: {where}: {error}") from None
    return pl.concat(
        [rows.select("system", *SAMPLE_KEYS), pl.DataFrame(scored, schema=_SCORES)],
        how="horizontal",
    )


def empty_scores() -> pl.DataFrame:
    """The table that `score` returns, without rows."""
    return pl.DataFrame(schema=_KEYS | _SCORES)


def _needle_columns(
    answer: str, outputs: list[str], needles: list[dict[str, Any]], metric: ReferenceMode
) -> dict[str, Any]:
    hits = contains(answer, outputs)
    if metric == "part":
        hits = [any(hits)]
    if needles and len(needles) < len(hits):
        raise ValueError(
            f"has fewer needles ({len(needles)}) than outputs ({len(hits)}); make the samples again"
        )
    in_question = needles[: len(hits)]
    return {
        "depth_percent": in_question[0]["depth_percent"] if in_question else None,
        "needle_keys": [needle["key"] for needle in in_question],
        "needle_depths": [needle["depth_percent"] for needle in in_question],
        "needle_found": hits if in_question else [],
    }
