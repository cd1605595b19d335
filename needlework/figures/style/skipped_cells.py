"""Cells of a summary that were not run, drawn as such: not as a zero, and not as nothing."""

import altair as alt
import polars as pl

GREY = "#c4c4c4"
MARK = "\N{MULTIPLICATION SIGN}"
_CELL = ["system", "task", "length"]


def gaps_of(summary: pl.DataFrame, task: str | None = None) -> pl.DataFrame:
    """system, task, length, not_run (the reason) of the cells that were not run."""
    if "not_run" not in summary.columns:
        return summary.clear().select(*_CELL, not_run=pl.lit(None, dtype=pl.String))
    found = summary.filter(pl.col("not_run").is_not_null()).select(*_CELL, "not_run")
    return found if task is None else found.filter(pl.col("task") == task)


def told(gaps: pl.DataFrame) -> list[str]:
    """A line of subtitle for each system and reason: the lengths that it has no answers at."""
    lines = []
    kind = pl.col("not_run").str.split(": ").list.first()
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
        alt.Tooltip("not_run:N", title="Not run"),
    ]
