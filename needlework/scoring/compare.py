"""Compare every system with a baseline on the same samples."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import polars as pl
from scipy.stats import binomtest

from needlework.scoring.intervals import paired_difference
from needlework.scoring.metrics import COLUMNS, METRICS
from needlework.scoring.pairing import SAMPLE_KEYS, answered, pair
from needlework.tables.columns import require

_CELL = ["system", "task", "length"]


class AccuracyRow(TypedDict):
    """One system against the baseline in one task and length; see `compare`."""

    baseline: str
    system: str
    task: str
    length: int
    metric: str
    n: int
    accuracy: float
    accuracy_baseline: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    memory_ratio: float | None
    answered: int
    answered_baseline: int
    accuracy_answered: float | None
    accuracy_answered_baseline: float | None


SpeedRow = dict[str, str | float | None]
"""One system against the baseline in one task and length; see `compare_speed`."""


def sign_test(differences: np.ndarray) -> float:
    """Two-sided exact sign test of paired differences, ties left out; 1 if all are ties.

    For scores of 0 or 1 this is the exact form of McNemar's test (1947).
    """
    wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def compare(
    scores: pl.DataFrame,
    predictions: pl.DataFrame,
    baseline: str,
    metrics: Mapping[str, str] | None = None,
    skipped: pl.DataFrame | None = None,
) -> tuple[list[AccuracyRow], str]:
    """Accuracy of each system minus that of `baseline`, by task and length, all depths pooled.

    Args:
        scores: system, task, length, sample, and the metrics, from `score`.
        predictions: system, task, length, sample, cache_bytes (null if not measured), status (not
            ok: no answer, which counts as wrong; null or no such column: ok).
        baseline: the system to compare with.
        metrics: the metric of each task, by default `all`.
        skipped: system, task, length of cells that were not run; their rows are left out.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        metric, n (pairs), accuracy, accuracy_baseline (0-1), difference (accuracy of the system -
        baseline, -1 to 1), ci_low, ci_high (95 %, `intervals.paired_difference`), p_value
        (`sign_test`; not corrected for the number of rows), memory_ratio (mean cache bytes, system
        / baseline; null if not measured), answered, answered_baseline (of n), accuracy_answered and
        accuracy_answered_baseline (of the samples that both answered; null if there are none).

    Raises:
        ValueError: if the baseline is missing, a system was not scored on the same samples, or a
            task not by its metric.
    """
    require(scores, ["system", *SAMPLE_KEYS, *METRICS], "scores")
    columns = [column for column in COLUMNS if column in scores.columns]
    require(predictions, ["system", *SAMPLE_KEYS, "cache_bytes"], "predictions")
    table = pair(
        scores.select("system", *SAMPLE_KEYS, *columns),
        predictions.select("system", *SAMPLE_KEYS, "cache_bytes", answered(predictions)),
        ("scores", "predictions"),
        ["system", *SAMPLE_KEYS],
    )
    rows: list[AccuracyRow] = []
    for cell in _paired_cells(table, baseline, "scores", skipped):
        system, task, length = cell.select(_CELL).row(0)
        metric = (metrics or {}).get(task, "all")
        if metric not in columns:
            raise ValueError(f"metric {metric!r}: must be one of {', '.join(columns)}")
        if cell[metric].has_nulls():
            raise ValueError(
                f"metric {metric}: task {task} has no scores in it; write all, part or exact"
            )
        ours, theirs = cell[metric].to_numpy(), cell[f"{metric}_baseline"].to_numpy()
        low, high = paired_difference(ours, theirs)
        both = cell.filter("answered", "answered_baseline")
        rows.append(
            {
                "baseline": baseline,
                "system": system,
                "task": task,
                "length": length,
                "metric": metric,
                "n": len(cell),
                "accuracy": float(ours.mean()),
                "accuracy_baseline": float(theirs.mean()),
                "difference": float(ours.mean() - theirs.mean()),
                "ci_low": low,
                "ci_high": high,
                "p_value": sign_test(ours - theirs),
                "memory_ratio": _ratio(
                    _number(cell["cache_bytes"].mean()),
                    _number(cell["cache_bytes_baseline"].mean()),
                ),
                "answered": int(cell["answered"].sum()),
                "answered_baseline": int(cell["answered_baseline"].sum()),
                "accuracy_answered": _number(both[metric].mean()),
                "accuracy_answered_baseline": _number(both[f"{metric}_baseline"].mean()),
            }
        )
    heading = (
        f"Accuracy and cache compared with {baseline} on the same samples. Difference: system - "
        f"{baseline}, in percentage points, with its 95 % interval. p: exact sign test (McNemar's) "
        "of each row, not corrected. Cache: bytes, system / baseline. Answered: system / baseline; "
        "unanswered prompts count as wrong."
    )
    return rows, _markdown(
        heading,
        (
            *("System", "Task", "Length", "Metric", "n", "Accuracy", "Difference"),
            *("95 % interval", "p", "Cache", "Answered"),
        ),
        [
            (
                row["system"],
                row["task"],
                f"{row['length']:,}",
                row["metric"],
                str(row["n"]),
                f"{100 * row['accuracy']:.1f} / {100 * row['accuracy_baseline']:.1f}",
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['ci_low']:+.1f} to {100 * row['ci_high']:+.1f}",
                "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}",
                _times(row["memory_ratio"]),
                f"{row['answered']} / {row['answered_baseline']}",
            )
            for row in rows
        ],
        text_columns=(0, 1, 3),
    )


_MEASURES = {
    "latency_seconds": "Latency",
    "first_token_seconds": "First token",
    "tokens_per_second": "Tokens/s",
    "peak_memory_bytes": "Peak memory",
    "price_dollars": "Price",
}

_WHERE_KNOWN = {"price_dollars": pl.Float64, "measured_at": pl.String, "device": pl.String}
"""Columns of measurements that a table may lack."""


def compare_speed(
    measurements: pl.DataFrame,
    predictions: pl.DataFrame,
    baseline: str,
    skipped: pl.DataFrame | None = None,
) -> tuple[list[SpeedRow], str]:
    """Speed, memory and price of each system next to those of `baseline`, by task and length.

    Separate from `compare` because measurements differ from run to run. Behind an API, seconds
    include the network and the API's queue.

    Args:
        measurements: system, task, length, sample, prefill_seconds, decode_seconds,
            peak_memory_bytes, and, where known, price_dollars, measured_at (time in UTC) and
            device; null if not measured.
        predictions: system, task, length, sample, new_tokens.
        baseline: the system to compare with.
        skipped: as in `compare`.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        n (pairs), speedup (median over samples of seconds to the first token, baseline / system;
        above 1 the system is faster), speedup_low, speedup_high (its quartiles), peak_memory_ratio
        (largest bytes, system / baseline), and for the system, and with `_baseline` for the
        baseline: latency_seconds (median from prompt to end of answer), first_token_seconds
        (median), tokens_per_second (median after the first token), peak_memory_bytes (largest),
        price_dollars (sum), measured_at (of the last sample) and device; null if not measured.
        A note below the table names systems that were measured on another day or device than the
        baseline.

    Raises:
        ValueError: if the baseline is missing, or a system was not measured on the same samples.
    """
    columns = ["prefill_seconds", "decode_seconds", "peak_memory_bytes"]
    require(measurements, ["system", *SAMPLE_KEYS, *columns], "measurements")
    require(predictions, ["system", *SAMPLE_KEYS, "new_tokens"], "predictions")
    for name, dtype in _WHERE_KNOWN.items():
        if name not in measurements.columns:
            measurements = measurements.with_columns(pl.lit(None, dtype=dtype).alias(name))
    prefill, decode = pl.col("prefill_seconds"), pl.col("decode_seconds")
    later_tokens = pl.when(decode > 0, pl.col("new_tokens") > 1).then(pl.col("new_tokens") - 1)
    table = pair(
        measurements.select("system", *SAMPLE_KEYS, *columns, *_WHERE_KNOWN),
        predictions.select("system", *SAMPLE_KEYS, "new_tokens"),
        ("measurements", "predictions"),
        ["system", *SAMPLE_KEYS],
    ).select(
        "system",
        *SAMPLE_KEYS,
        latency_seconds=prefill + decode,
        first_token_seconds=prefill,
        tokens_per_second=later_tokens / decode,
        peak_memory_bytes="peak_memory_bytes",
        price_dollars="price_dollars",
        measured_at="measured_at",
        device="device",
    )
    rows: list[SpeedRow] = []
    apart: dict[str, None] = {}
    labels: list[tuple[str, ...]] = []
    values: list[dict[str, float | None]] = []
    for cell in _paired_cells(table, baseline, "measurements", skipped):
        system, task, length = cell.select(_CELL).row(0)
        ratios = cell["first_token_seconds_baseline"] / cell["first_token_seconds"]
        speedup = _number(ratios.median())
        quartiles = (
            _number(ratios.quantile(0.25, "linear")),
            _number(ratios.quantile(0.75, "linear")),
        )
        measured = {
            f"{name}{suffix}": _total(name, cell[f"{name}{suffix}"])
            for name in _MEASURES
            for suffix in ("", "_baseline")
        }
        conditions = {
            f"{name}{suffix}": _text(cell[f"{name}{suffix}"].max())
            for name in ("measured_at", "device")
            for suffix in ("", "_baseline")
        }
        if _are_apart(**conditions):
            apart[system] = None
        rows.append(
            {
                "baseline": baseline,
                "system": system,
                "task": task,
                "length": length,
                "n": len(cell),
                "speedup": speedup,
                "speedup_low": quartiles[0],
                "speedup_high": quartiles[1],
                "peak_memory_ratio": _ratio(
                    measured["peak_memory_bytes"], measured["peak_memory_bytes_baseline"]
                ),
                **measured,
                **conditions,
            }
        )
        labels.append(
            (
                *(system, task, f"{length:,}", str(len(cell)), _times(speedup)),
                " to ".join(map(_times, quartiles)),
            )
        )
        values.append(measured)
    shown = [
        name
        for name in _MEASURES
        if any(row[key] is not None for row in values for key in (name, f"{name}_baseline"))
    ]
    heading = (
        f"Speed, memory and price compared with {baseline} on the same samples. Speedup: median of "
        "seconds to the first token, baseline / system, with its quartiles. Then system / "
        "baseline: median latency of an answer, median time to its first token, median tokens per "
        "second after it; largest memory of this machine; price of all answers."
    )
    markdown = _markdown(
        heading,
        ("System", "Task", "Length", "n", "Speedup", "Quartiles", *(_MEASURES[k] for k in shown)),
        [
            (
                *label,
                *(
                    f"{_with_unit(k, row[k])} / {_with_unit(k, row[f'{k}_baseline'])}"
                    for k in shown
                ),
            )
            for label, row in zip(labels, values, strict=True)
        ],
        text_columns=(0, 1),
    )
    if apart:
        markdown += (
            f"\nNot measured on the same day and device as {baseline}: {', '.join(apart)}. Their "
            "seconds were measured in another run and do not compare.\n"
        )
    return rows, markdown


def _are_apart(
    measured_at: str | None,
    measured_at_baseline: str | None,
    device: str | None,
    device_baseline: str | None,
) -> bool:
    """Whether two systems were measured on different days or devices, where both are known."""
    days = measured_at and measured_at[:10], measured_at_baseline and measured_at_baseline[:10]
    pairs = days, (device, device_baseline)
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _text(value: object) -> str | None:
    """A scalar of polars, which types it as any type of a column."""
    return value if isinstance(value, str) else None


def _total(name: str, values: pl.Series) -> float | None:
    """One value of a measure for all samples; None if no sample has one."""
    if name == "price_dollars":
        return _number(values.sum()) if values.count() else None
    return _number(values.max() if name == "peak_memory_bytes" else values.median())


def _number(value: object) -> float | None:
    """A scalar of polars, which types it as any type of a column."""
    return value if isinstance(value, int | float) else None


def _with_unit(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "peak_memory_bytes":
        return f"{_short(value / 1e9)} GB"
    if name == "price_dollars":
        return f"${_short(value)}"
    return _short(value) if name == "tokens_per_second" else f"{_short(value)} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _paired_cells(
    table: pl.DataFrame, baseline: str, name: str, skipped: pl.DataFrame | None
) -> list[pl.DataFrame]:
    """One table per system, task and length, each row joined to the baseline's of the sample."""
    systems = table["system"].unique(maintain_order=True).to_list()
    if baseline not in systems:
        raise ValueError(f"baseline {baseline!r}: not in the {name}; choose one of {systems}")
    reference = table.filter(pl.col("system") == baseline).drop("system")
    reference = reference.rename({key: f"{key}_baseline" for key in reference.columns[3:]})
    tasks = pl.Enum(table["task"].unique(maintain_order=True))
    cells = []
    for system in systems:
        if system == baseline:
            continue
        ours, theirs = table.filter(pl.col("system") == system), reference
        if skipped is not None:
            gaps = skipped.filter(pl.col("system").is_in([system, baseline]))
            ours, theirs = (
                rows.join(gaps, on=_CELL[1:], how="anti", maintain_order="left")
                for rows in (ours, theirs)
            )
            if ours.is_empty() and theirs.is_empty():
                continue
        paired = pair(ours, theirs, (f"{name} of {system}", f"{name} of {baseline}"))
        ordered = paired.sort(pl.col("task").cast(tasks), "length", "sample")
        cells += ordered.partition_by(_CELL, maintain_order=True)
    return cells


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return float(ours / theirs) if ours is not None and theirs else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_short(ratio)} x"


def _markdown(
    heading: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    text_columns: tuple[int, ...],
) -> str:
    rule = ["---" if index in text_columns else "---:" for index in range(len(columns))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
    return "\n".join([heading, "", *lines, ""])
