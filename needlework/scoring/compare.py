"""Every system against a baseline, on the same samples."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from scipy.stats import binomtest

from needlework.scoring.intervals import paired_difference
from needlework.scoring.metrics import METRICS
from needlework.scoring.pairing import KEYS, answered, pair
from needlework.tables.columns import require

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
    skip_reason: pl.DataFrame | None = None,
) -> tuple[Rows, str]:
    """What each system gains or loses against `baseline`, by task and length, all depths together.

    Args:
        scores: system, task, length, sample, and the metrics, as `score` makes them.
        predictions: system, task, length, sample, cache_bytes (null where not measured), status
            (not ok: there is no answer, which counts as wrong; null, or no such column: ok).
        baseline: the system that the others are compared with.
        metrics: the metric of each task; `all` for a task not named.
        skip_reason: system, task, length of cells without answers: what cannot be compared is left out.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        metric, n (pairs), accuracy, accuracy_baseline (0-1), difference (accuracy of system -
        baseline, -1 to 1), ci_low, ci_high (95 %, `intervals.paired_difference`), p_value (`sign_test`;
        not corrected for the number of rows), memory_ratio (mean cache bytes, system / baseline;
        null where not measured), answered, answered_baseline (how many of n), accuracy_answered
        and accuracy_answered_baseline (of those that both answered; null where there is none).

    Raises:
        ValueError: if the baseline is missing, a system was not scored on the same samples, or a
            task not by its metric.
    """
    require(scores, ["system", *KEYS, *METRICS], "scores")
    require(predictions, ["system", *KEYS, "cache_bytes"], "predictions")
    table = pair(
        scores.select("system", *KEYS, *METRICS),
        predictions.select("system", *KEYS, "cache_bytes", answered(predictions)),
        ("scores", "predictions"),
        ["system", *KEYS],
    )
    rows: Rows = []
    for cell in _paired_cells(table, baseline, "scores", skip_reason):
        metric = (metrics or {}).get(cell["task"][0], "all")
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r}: must be one of {', '.join(METRICS)}")
        if cell[metric].has_nulls():
            raise ValueError(
                f"metric {metric}: task {cell['task'][0]} has none; write all, part or exact"
            )
        ours, theirs = cell[metric].to_numpy(), cell[f"{metric}_baseline"].to_numpy()
        low, high = paired_difference(ours, theirs)
        both = cell.filter("answered", "answered_baseline")
        rows.append(
            {
                **_heading(cell, baseline),
                "metric": metric,
                "n": len(cell),
                "accuracy": float(ours.mean()),
                "accuracy_baseline": float(theirs.mean()),
                "difference": float(ours.mean() - theirs.mean()),
                "ci_low": low,
                "ci_high": high,
                "p_value": sign_test(ours - theirs),
                "memory_ratio": _ratio(
                    cell["cache_bytes"].mean(), cell["cache_bytes_baseline"].mean()
                ),
                "answered": cell["answered"].sum(),
                "answered_baseline": cell["answered_baseline"].sum(),
                "accuracy_answered": both[metric].mean(),
                "accuracy_answered_baseline": both[f"{metric}_baseline"].mean(),
            }
        )
    heading = (
        f"Accuracy and cache against {baseline}, on the same samples. Difference: system - "
        f"{baseline}, in points of 100, with its 95 % interval. p: exact sign test (McNemar's), "
        "one row at a time. Cache: bytes, system / baseline. Answered: by the system / by the "
        "baseline; what is not answered counts as wrong."
    )
    return rows, _markdown(
        heading,
        (
            *("System", "Task", "Length", "Metric", "n", "Accuracy", "Difference"),
            *("95 % interval", "p", "Cache", "Answered"),
        ),
        [
            (
                *_labels(row),
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


_SPEED = {
    "latency_seconds": "Latency",
    "first_token_seconds": "First token",
    "tokens_per_second": "Tokens/s",
    "peak_memory_bytes": "Peak memory",
    "price_dollars": "Price",
}


def compare_speed(
    measurements: pl.DataFrame,
    predictions: pl.DataFrame,
    baseline: str,
    skip_reason: pl.DataFrame | None = None,
) -> tuple[Rows, str]:
    """What each system's answers take beside those of `baseline`, by task and length.

    Measured, so not the same from run to run: kept apart from `compare`. Behind an API, seconds
    hold the network's and those in the API's waiting line.

    Args:
        measurements: system, task, length, sample, prefill_seconds, decode_seconds,
            peak_memory_bytes, price_dollars (no such column: nothing has a price); null where not
            measured.
        predictions: system, task, length, sample, new_tokens.
        baseline: the system that the others are compared with.
        skip_reason: as in `compare`.

    Returns:
        The rows, and a Markdown table of them. A row has baseline, system, task, length (tokens),
        n (pairs), speedup (median over samples of seconds to the first token, baseline / system;
        above 1 the system is faster), speedup_low, speedup_high (its quartiles),
        peak_memory_ratio (largest bytes, system / baseline), and of the system, and with
        `_baseline` of the baseline: latency_seconds (median from prompt to the answer's end),
        first_token_seconds (median), tokens_per_second (median while the answer is written, the
        first token left out), peak_memory_bytes (largest), price_dollars (sum); null where not
        measured.

    Raises:
        ValueError: if the baseline is missing, or a system was not measured on the same samples.
    """
    columns = ["prefill_seconds", "decode_seconds", "peak_memory_bytes"]
    require(measurements, ["system", *KEYS, *columns], "measurements")
    require(predictions, ["system", *KEYS, "new_tokens"], "predictions")
    if "price_dollars" not in measurements.columns:
        measurements = measurements.with_columns(price_dollars=pl.lit(None, dtype=pl.Float64))
    prefill, decode = pl.col("prefill_seconds"), pl.col("decode_seconds")
    later = pl.when(decode > 0, pl.col("new_tokens") > 1).then(pl.col("new_tokens") - 1)
    table = pair(
        measurements.select("system", *KEYS, *columns, "price_dollars"),
        predictions.select("system", *KEYS, "new_tokens"),
        ("measurements", "predictions"),
        ["system", *KEYS],
    ).select(
        "system",
        *KEYS,
        latency_seconds=prefill + decode,
        first_token_seconds=prefill,
        tokens_per_second=later / decode,
        peak_memory_bytes="peak_memory_bytes",
        price_dollars="price_dollars",
    )
    rows: Rows = []
    for cell in _paired_cells(table, baseline, "measurements", skip_reason):
        ratio = cell["first_token_seconds_baseline"] / cell["first_token_seconds"]
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
                **{
                    f"{name}{whose}": _of_all(name, cell[f"{name}{whose}"])
                    for name in _SPEED
                    for whose in ("", "_baseline")
                },
            }
        )
    shown = [
        name
        for name in _SPEED
        if any(row[key] is not None for row in rows for key in (name, f"{name}_baseline"))
    ]
    heading = (
        f"Speed, memory and price against {baseline}, on the same samples. Speedup: median of "
        "seconds to the first token, baseline / system, with its quartiles. Then system / "
        "baseline: medians of an answer's latency, its first token, and tokens a second after it; "
        "largest memory of this machine; price of all answers together."
    )
    return rows, _markdown(
        heading,
        ("System", "Task", "Length", "n", "Speedup", "Quartiles", *(_SPEED[k] for k in shown)),
        [
            (
                *_labels(row),
                str(row["n"]),
                _times(row["speedup"]),
                f"{_times(row['speedup_low'])} to {_times(row['speedup_high'])}",
                *(f"{_unit(k, row[k])} / {_unit(k, row[f'{k}_baseline'])}" for k in shown),
            )
            for row in rows
        ],
        text_columns=(0, 1),
    )


def _of_all(name: str, values: pl.Series) -> float | None:
    """One value for all samples; null where none was measured."""
    if name == "price_dollars":
        return values.sum() if values.count() else None
    return values.max() if name == "peak_memory_bytes" else values.median()


def _unit(name: str, value: float | None) -> str:
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
    table: pl.DataFrame, baseline: str, name: str, skip_reason: pl.DataFrame | None
) -> list[pl.DataFrame]:
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
        rows, theirs = table.filter(pl.col("system") == system), reference
        if skip_reason is not None:
            gaps = skip_reason.filter(pl.col("system").is_in([system, baseline]))
            rows, theirs = (
                x.join(gaps, on=_CELL[1:], how="anti", maintain_order="left")
                for x in (rows, theirs)
            )
            if rows.is_empty() and theirs.is_empty():
                continue
        paired = pair(rows, theirs, (f"{name} of {system}", f"{name} of {baseline}"))
        ordered = paired.sort(pl.col("task").cast(tasks), "length", "sample")
        cells += ordered.partition_by(_CELL, maintain_order=True)
    return cells


def _heading(cell: pl.DataFrame, baseline: str) -> dict[str, str | int]:
    return {"baseline": baseline, **cell.select(_CELL).row(0, named=True)}


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return float(ours / theirs) if ours is not None and theirs else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_short(ratio)} x"


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
