"""Every system against a baseline, on the same samples."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from scipy.stats import binomtest

from needlework.scoring.intervals import paired_difference
from needlework.scoring.metrics import METRICS
from needlework.scoring.pairing import KEYS, pair, require

Rows = list[dict[str, str | int | float | None]]
_CELL = ["system", "task", "length"]


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
) -> tuple[Rows, str]:
    """What each system gains or loses against `baseline`, by task and length, all depths together.

    Args:
        scores: system, task, length, sample, and the metrics, as `score` makes them.
        predictions: system, task, length, sample, cache_bytes (null where not measured).
        baseline: the system that the others are compared with.
        metrics: the metric of each task; `all` for a task not named.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        metric, n (pairs), difference (accuracy of system - baseline, -1 to 1), low, high (95 %,
        `intervals.paired_difference`), p_value (`sign_test`; not corrected for the number of
        rows), memory_ratio (mean cache bytes, system / baseline; null where not measured).

    Raises:
        ValueError: if the baseline is missing, a system was not scored on the same samples, or a
            task not by its metric.
    """
    require(scores, ["system", *KEYS, *METRICS], "scores")
    require(predictions, ["system", *KEYS, "cache_bytes"], "predictions")
    table = pair(
        scores.select("system", *KEYS, *METRICS),
        predictions.select("system", *KEYS, "cache_bytes"),
        ("scores", "predictions"),
        ["system", *KEYS],
    )
    rows: Rows = []
    for cell in _paired_cells(table, baseline, "scores"):
        metric = (metrics or {}).get(cell["task"][0], "all")
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r}: must be one of {', '.join(METRICS)}")
        if cell[metric].has_nulls():
            raise ValueError(
                f"metric {metric}: task {cell['task'][0]} has none; write all, part or exact"
            )
        ours, theirs = cell[metric].to_numpy(), cell[f"{metric}_baseline"].to_numpy()
        low, high = paired_difference(ours, theirs)
        rows.append(
            {
                **_heading(cell, baseline),
                "metric": metric,
                "n": len(cell),
                "difference": float(ours.mean() - theirs.mean()),
                "low": low,
                "high": high,
                "p_value": sign_test(ours - theirs),
                "memory_ratio": _ratio(
                    cell["cache_bytes"].mean(), cell["cache_bytes_baseline"].mean()
                ),
            }
        )
    heading = (
        f"Accuracy and cache against {baseline}, on the same samples. Difference: system - "
        f"{baseline}, in points of 100, with its 95 % interval. p: exact sign test (McNemar's), "
        "one row at a time. Cache: bytes, system / baseline."
    )
    return rows, _markdown(
        heading,
        ("System", "Task", "Length", "Metric", "n", "Difference", "95 % interval", "p", "Cache"),
        [
            (
                *_labels(row),
                row["metric"],
                str(row["n"]),
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}",
                _times(row["memory_ratio"]),
            )
            for row in rows
        ],
        text_columns=(0, 1, 3),
    )


def compare_speed(measurements: pl.DataFrame, baseline: str) -> tuple[Rows, str]:
    """How much faster each system reads its prompts than `baseline`, by task and length.

    Measured, so not the same from run to run: kept apart from `compare`.

    Args:
        measurements: system, task, length, sample, prefill_seconds, peak_memory_bytes (null where
            not measured).
        baseline: the system that the others are compared with.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        n (pairs), speedup (median over samples of prefill seconds, baseline / system; above 1 the
        system is faster), speedup_low, speedup_high (its quartiles), peak_memory_ratio (largest
        bytes, system / baseline); null where not measured.

    Raises:
        ValueError: if the baseline is missing, or a system was not measured on the same samples.
    """
    columns = ["prefill_seconds", "peak_memory_bytes"]
    require(measurements, ["system", *KEYS, *columns], "measurements")
    table = measurements.select("system", *KEYS, *columns)
    rows: Rows = []
    for cell in _paired_cells(table, baseline, "measurements"):
        ratio = cell["prefill_seconds_baseline"] / cell["prefill_seconds"]
        rows.append(
            {
                **_heading(cell, baseline),
                "n": len(cell),
                "speedup": ratio.median(),
                "speedup_low": ratio.quantile(0.25, "linear"),
                "speedup_high": ratio.quantile(0.75, "linear"),
                "peak_memory_ratio": _ratio(
                    cell["peak_memory_bytes"].max(), cell["peak_memory_bytes_baseline"].max()
                ),
            }
        )
    heading = (
        f"Prefill speed and peak memory against {baseline}, on the same samples. Speedup: median "
        "of seconds, baseline / system, with its quartiles. Peak memory: bytes, system / baseline."
    )
    return rows, _markdown(
        heading,
        ("System", "Task", "Length", "n", "Speedup", "Quartiles", "Peak memory"),
        [
            (
                *_labels(row),
                str(row["n"]),
                _times(row["speedup"]),
                f"{_times(row['speedup_low'])} to {_times(row['speedup_high'])}",
                _times(row["peak_memory_ratio"]),
            )
            for row in rows
        ],
        text_columns=(0, 1),
    )


def _paired_cells(table: pl.DataFrame, baseline: str, name: str) -> list[pl.DataFrame]:
    """One table a system, task and length, each row beside the baseline's of the same sample."""
    systems = table["system"].unique(maintain_order=True).to_list()
    if baseline not in systems:
        raise ValueError(f"baseline {baseline!r}: not in the {name}, which hold {systems}")
    reference = table.filter(pl.col("system") == baseline).drop("system")
    reference = reference.rename({key: f"{key}_baseline" for key in reference.columns[3:]})
    tasks = pl.Enum(table["task"].unique(maintain_order=True))
    cells = []
    for system in systems:
        if system == baseline:
            continue
        rows = table.filter(pl.col("system") == system)
        paired = pair(rows, reference, (f"{name} of {system}", f"{name} of {baseline}"))
        ordered = paired.sort(pl.col("task").cast(tasks), "length", "sample")
        cells += ordered.partition_by(_CELL, maintain_order=True)
    return cells


def _heading(cell: pl.DataFrame, baseline: str) -> dict[str, str | int]:
    return {"baseline": baseline, **cell.select(_CELL).row(0, named=True)}


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return float(ours / theirs) if ours is not None and theirs else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g} x"


def _labels(row: dict) -> tuple[str, str, str]:
    return row["system"], row["task"], f"{row['length']:,}"


def _markdown(
    heading: str,
    columns: tuple[str, ...],
    rows: list[tuple[str, ...]],
    text_columns: tuple[int, ...],
) -> str:
    rule = ["---" if index in text_columns else "---:" for index in range(len(columns))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
    return "\n".join([heading, "", *lines, ""])
