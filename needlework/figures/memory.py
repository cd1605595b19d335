"""Memory over time while the longest prompts were answered, all systems."""

import altair as alt
import polars as pl

from needlework.figures.style.theme import blank, inline, names, styled, told_apart
from needlework.tables.columns import require

_TITLE = "Memory over time"
_WIDTH, _HEIGHT = 420, 320
_PANELS = {"resident_bytes": "Resident memory", "gpu_bytes": "GPU memory"}


def memory(measurements: pl.DataFrame, unit: str = "tokens") -> alt.TopLevelMixin:
    """Memory against seconds: of each system that sample of the longest length that took longest.

    Drawn from measured times and memory, so not the same from run to run. Without memory, the
    figure says so.

    Args:
        measurements: system, task, length, sample, prefill_seconds, decode_seconds, memory (a list
            of seconds, resident_bytes, gpu_bytes; null where a system's memory is not seen).
        unit: of the lengths.
    """
    if measurements.is_empty():
        return blank(_TITLE, "No prompt was answered")
    columns = ["system", "task", "length", "sample", "prefill_seconds", "decode_seconds", "memory"]
    require(measurements, columns, "measurements")
    measured = measurements.filter(pl.col("memory").list.len() > 0)
    if measured.is_empty():
        return blank(_TITLE, "No memory was measured")
    taken = pl.col("prefill_seconds") + pl.col("decode_seconds")
    slowest = (
        measured.filter(pl.col("length") == pl.col("length").max().over("system"))
        .sort(taken, descending=True, maintain_order=True)
        .unique("system", keep="first", maintain_order=True)
    )
    points = slowest.explode("memory").unnest("memory")
    systems = names(measured, "system")
    panels = [
        _panel(points, column, title, systems, unit)
        for column, title in _PANELS.items()
        if points[column].is_not_null().any()
    ]
    longest = slowest["length"].max()
    return styled(
        alt.hconcat(*panels, spacing=40),
        _TITLE,
        [
            f"While one prompt of {longest:,} {unit} was answered: of each system the slowest",
            "Dots: the first token, where prefill ends and decode begins",
        ],
    )


def _panel(
    points: pl.DataFrame, column: str, title: str, systems: list[str], unit: str
) -> alt.LayerChart:
    look = told_apart("system", systems, "System")
    x = alt.X("seconds:Q", title="Time since the prompt was given (seconds)")
    # Weights and libraries are the most of it, and stand still: not from zero.
    y = alt.Y("mebibytes:Q", title=f"{title} (MiB)").scale(zero=False).axis(format=",~f")
    shown = points.filter(pl.col(column).is_not_null()).with_columns(
        mebibytes=pl.col(column) / 2**20
    )
    first = (
        shown.filter(pl.col("seconds") >= pl.col("prefill_seconds"))
        .unique("system", keep="first", maintain_order=True)
        .with_columns(seconds="prefill_seconds")
    )
    tooltip = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
        alt.Tooltip("sample:Q", title="Sample"),
        alt.Tooltip("prefill_seconds:Q", title="Prefill (seconds)", format=".3~r"),
        alt.Tooltip(f"{column}:Q", title=f"{title} (bytes)", format=","),
    ]
    which = ["system", "task", "length", "sample"]
    drawn = [*which, "prefill_seconds", "seconds", column, "mebibytes"]
    lines = (
        alt.Chart(inline(shown.select(drawn)))
        .mark_line(strokeWidth=2, interpolate="step-before")
        .encode(x=x, y=y, color=look["color"], strokeDash=look["strokeDash"], tooltip=tooltip)
    )
    dots = (
        alt.Chart(inline(first.select(drawn)))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=x, y=y, color=look["color"], shape=look["shape"], tooltip=tooltip)
    )
    return alt.layer(lines, dots).properties(width=_WIDTH, height=_HEIGHT)
