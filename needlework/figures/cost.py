"""Prefill time and cache size against context length, all systems."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.axes import (
    BYTES_LABEL,
    SECONDS_LABEL,
    length_axis,
    log_ticks,
    side_by_side,
)
from needlework.figures.style.theme import (
    categorical,
    distinct,
    empty_figure,
    inline,
    sample_size,
    styled,
)
from needlework.tables.columns import concat, require

_TITLE = "Cost by context length"
_WIDTH, _HEIGHT = 420, 320


def cost(
    measurements: Sequence[pl.DataFrame],
    predictions: Sequence[pl.DataFrame],
    length_unit: str = "tokens",
) -> alt.TopLevelMixin:
    """Median prefill seconds and median cache bytes with quartiles, on log-log axes.

    Tasks are pooled, because the cost depends on the length. Systems are drawn a few pixels apart
    so that equal costs do not hide each other. A panel without a positive value is left out; if
    both are, the figure says so. Measured times differ from run to run, and so does the figure.

    Args:
        measurements: tables of system, length, prefill_seconds.
        predictions: tables of system, length, cache_bytes.
        length_unit: unit of the lengths.

    Raises:
        ValueError: if only one of the two is empty, or one lacks a column.
    """
    measured, predicted = concat(measurements), concat(predictions)
    if measured.is_empty() and predicted.is_empty():
        return empty_figure(_TITLE, "No prompt was answered")
    require(measured, ["system", "length", "prefill_seconds"], "measurements")
    require(predicted, ["system", "length", "cache_bytes"], "predictions")
    seconds = _quartiles(measured, "prefill_seconds")
    cache = _quartiles(predicted, "cache_bytes")
    both = pl.concat([seconds, cache])
    if both.is_empty():
        return empty_figure(_TITLE, "Neither time nor cache was measured")
    systems = list(dict.fromkeys(distinct(measured, "system") + distinct(predicted, "system")))
    lengths = sorted(both["length"].unique())
    panels = []
    if len(seconds):
        axis = alt.Axis(values=_ticks(seconds, 10), labelExpr=SECONDS_LABEL, labelOverlap=False)
        panels.append(
            _panel(seconds, "Prefill time", "seconds", axis, lengths, systems, length_unit)
        )
    if len(cache):
        axis = alt.Axis(values=_ticks(cache, 2), labelExpr=BYTES_LABEL, labelOverlap=False)
        panels.append(_panel(cache, "Cache size", "bytes", axis, lengths, systems, length_unit))
    return styled(
        alt.hconcat(*panels, spacing=40),
        _TITLE,
        [
            "Medians with quartiles as bars; systems side by side at each length",
            sample_size(both["n"], "prompts per point, all tasks pooled"),
        ],
    )


def _quartiles(table: pl.DataFrame, column: str) -> pl.DataFrame:
    value = pl.col(column).cast(pl.Float64)
    return (
        table.filter(value > 0)
        .group_by("system", "length", maintain_order=True)
        .agg(
            n=pl.len().cast(pl.Int64),
            median=value.median(),
            quartile_low=value.quantile(0.25, "linear"),
            quartile_high=value.quantile(0.75, "linear"),
        )
    )


def _ticks(table: pl.DataFrame, base: int) -> list[float]:
    return log_ticks(min(table["quartile_low"]), max(table["quartile_high"]), base)


def _panel(
    table: pl.DataFrame,
    title: str,
    unit: str,
    axis: alt.Axis,
    lengths: list[int],
    systems: list[str],
    length_unit: str,
) -> alt.LayerChart:
    domain = [axis["values"][0], axis["values"][-1]]
    scale = alt.Scale(type="log", domain=domain, nice=False)
    y = {"title": f"{title} (log scale)", "scale": scale, "axis": axis}
    number = ",.0f" if unit == "bytes" else ".4~r"
    look = categorical("system", systems, "System")
    shared = alt.Chart(inline(side_by_side(table, lengths, _WIDTH))).encode(
        x=length_axis(lengths, _WIDTH, "x", length_unit), color=look["color"]
    )
    lines = shared.mark_line(strokeWidth=2).encode(
        y=alt.Y("median:Q", **y), strokeDash=look["strokeDash"]
    )
    bars = shared.mark_rule(strokeWidth=1.5).encode(
        y=alt.Y("quartile_low:Q", **y), y2="quartile_high:Q"
    )
    points = shared.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
        y=alt.Y("median:Q", **y),
        shape=look["shape"],
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
            alt.Tooltip("median:Q", title=f"{title} ({unit})", format=number),
            alt.Tooltip("quartile_low:Q", title="Lower quartile", format=number),
            alt.Tooltip("quartile_high:Q", title="Upper quartile", format=number),
            alt.Tooltip("n:Q", title="Prompts"),
        ],
    )
    return alt.layer(bars, lines, points).properties(width=_WIDTH, height=_HEIGHT)
