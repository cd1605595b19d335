"""Memory over time while the longest prompts are answered, all systems."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.theme import categorical, distinct, empty_figure, inline, styled
from needlework.tables.columns import concat, require

_TITLE = "Memory over time"
_WIDTH, _HEIGHT = 420, 320
_PANELS = {"resident_bytes": "Resident memory", "gpu_bytes": "GPU memory"}


def memory(measurements: Sequence[pl.DataFrame], length_unit: str = "tokens") -> alt.TopLevelMixin:
    """Memory against seconds, of the slowest sample of each system's longest length.

    Measured times and memory differ from run to run, and so does the figure. Without a memory
    measurement, the figure says so.

    Args:
        measurements: tables of system, task, length, sample, prefill_seconds, decode_seconds,
            memory (a list of seconds, resident_bytes, gpu_bytes; null if it cannot be measured).
        length_unit: unit of the lengths.
    """
    table = concat(measurements)
    if table.is_empty():
        return empty_figure(_TITLE, "No prompt was answered")
    columns = ["system", "task", "length", "sample", "prefill_seconds", "decode_seconds", "memory"]
    require(table, columns, "measurements")
    measured = table.filter(pl.col("memory").list.len() > 0)
    if measured.is_empty():
        return empty_figure(_TITLE, "No memory was measured")
    seconds = pl.col("prefill_seconds") + pl.col("decode_seconds")
    slowest = (
        measured.filter(pl.col("length") == pl.col("length").max().over("system"))
        .sort(seconds, descending=True, maintain_order=True)
        .unique("system", keep="first", maintain_order=True)
    )
    readings = slowest.explode("memory").unnest("memory")
    systems = distinct(measured, "system")
    panels = [
        _panel(readings, column, title, systems, length_unit)
        for column, title in _PANELS.items()
        if readings[column].is_not_null().any()
    ]
    longest = max(slowest["length"].to_list())
    return styled(
        alt.hconcat(*panels, spacing=40),
        _TITLE,
        [
            f"One prompt of {longest:,} {length_unit}: the slowest of each system",
            "Dots: the first token, where prefill ends and decode begins",
        ],
    )


def _panel(
    readings: pl.DataFrame, column: str, title: str, systems: list[str], length_unit: str
) -> alt.LayerChart:
    look = categorical("system", systems, "System")
    x = alt.X("seconds:Q", title="Time since the start of the prompt (seconds)")
    # Most of it is constant, weights and libraries, so the axis does not start at zero.
    y = alt.Y("mebibytes:Q", title=f"{title} (MiB)").scale(zero=False).axis(format=",~f")
    shown = readings.filter(pl.col(column).is_not_null()).with_columns(
        mebibytes=pl.col(column) / 2**20
    )
    first_tokens = (
        shown.filter(pl.col("seconds") >= pl.col("prefill_seconds"))
        .unique("system", keep="first", maintain_order=True)
        .with_columns(seconds="prefill_seconds")
    )
    tooltip = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
        alt.Tooltip("sample:Q", title="Sample"),
        alt.Tooltip("prefill_seconds:Q", title="Prefill (seconds)", format=".3~r"),
        alt.Tooltip(f"{column}:Q", title=f"{title} (bytes)", format=","),
    ]
    keys = ["system", "task", "length", "sample"]
    columns = [*keys, "prefill_seconds", "seconds", column, "mebibytes"]
    lines = (
        alt.Chart(inline(shown.select(columns)))
        .mark_line(strokeWidth=2, interpolate="step-before")
        .encode(x=x, y=y, color=look["color"], strokeDash=look["strokeDash"], tooltip=tooltip)
    )
    dots = (
        alt.Chart(inline(first_tokens.select(columns)))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=x, y=y, color=look["color"], shape=look["shape"], tooltip=tooltip)
    )
    return alt.layer(lines, dots).properties(width=_WIDTH, height=_HEIGHT)
