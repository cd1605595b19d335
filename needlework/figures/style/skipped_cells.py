"""Cells of a summary that were not run, drawn as such rather than as zero or as nothing."""

import altair as alt
import polars as pl

GREY = "#c4c4c4"
MARK = "\N{MULTIPLICATION SIGN}"
_CELL = ["system", "task", "length"]


def skipped_cells(summary: pl.DataFrame, task: str | None = None) -> pl.DataFrame:
    """The cells that were not run: system, task, length, skip_reason."""
    if "skip_reason" not in summary.columns:
        return summary.clear().select(*_CELL, skip_reason=pl.lit(None, dtype=pl.String))
    cells = summary.filter(pl.col("skip_reason").is_not_null()).select(*_CELL, "skip_reason")
    return cells if task is None else cells.filter(pl.col("task") == task)


def skip_notes(skipped: pl.DataFrame) -> list[str]:
    """Lines of subtitle: for each system and reason, the lengths that were not run."""
    lines = []
    reason = pl.col("skip_reason").str.split(": ").list.first()
    rows = skipped.with_columns(reason=reason).group_by("system", "reason", maintain_order=True)
    for (system, why), cells in rows:
        lengths = ", ".join(f"{length:,}" for length in sorted(cells["length"].unique()))
        lines.append(f"{MARK} not run: {system} at {lengths} ({why})")
    return lines


def skip_tooltip(length_unit: str) -> list[alt.Tooltip]:
    """Tooltip of a cell that was not run."""
    return [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
        alt.Tooltip("skip_reason:N", title="Not run"),
    ]
