"""Cells of a summary that were not run, drawn as such: not as a zero, and not as nothing."""

import altair as alt
import polars as pl

GREY = "#c4c4c4"
MARK = "\N{MULTIPLICATION SIGN}"
_CELL = ["system", "task", "length"]


def gaps_of(summary: pl.DataFrame, task: str | None = None) -> pl.DataFrame:
    """system, task, length, skip_reason (the reason) of the cells that were not run."""
    if "skip_reason" not in summary.columns:
        return summary.clear().select(*_CELL, skip_reason=pl.lit(None, dtype=pl.String))
    found = summary.filter(pl.col("skip_reason").is_not_null()).select(*_CELL, "skip_reason")
    return found if task is None else found.filter(pl.col("task") == task)


def told(gaps: pl.DataFrame) -> list[str]:
    """A line of subtitle for each system and reason: the lengths that it has no answers at."""
    lines = []
    kind = pl.col("skip_reason").str.split(": ").list.first()
    rows = gaps.with_columns(kind=kind).group_by("system", "kind", maintain_order=True)
    for (system, reason), cells in rows:
        lengths = ", ".join(f"{length:,}" for length in sorted(cells["length"].unique()))
        lines.append(f"{MARK} not run: {system} at {lengths} ({reason})")
    return lines


def tooltip(unit: str) -> list[alt.Tooltip]:
    """Of a cell that was not run."""
    return [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
        alt.Tooltip("skip_reason:N", title="Not run"),
    ]
