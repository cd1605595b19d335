"""Prefill time and cache size against context length, all systems."""

import altair as alt
import polars as pl

from needlework.figures.style.axes import (
    BYTES_LABEL,
    SECONDS_LABEL,
    length_axis,
    log_ticks,
    side_by_side,
)
from needlework.figures.style.theme import blank, counted, inline, names, styled, told_apart
from needlework.tables.columns import require

_TITLE = "Cost by context length"
_WIDTH, _HEIGHT = 420, 320


def cost(
    measurements: pl.DataFrame, predictions: pl.DataFrame, unit: str = "tokens"
) -> alt.TopLevelMixin:
    """Median prefill seconds and median cache bytes, with quartiles, on log-log axes.

    Drawn from measured times, so not the same from run to run. Tasks are pooled: the cost is
    that of the length. Systems stand some pixels beside each other, so that equal costs do not
    hide one another. A panel without a single positive value is left out; without any, the figure
    says so.

    Args:
        measurements: system, length, prefill_seconds.
        predictions: system, length, cache_bytes.
        unit: of the lengths.

    Raises:
        ValueError: if one table is empty, or lacks a column.
    """
    if measurements.is_empty() and predictions.is_empty():
        return blank(_TITLE, "No prompt was answered")
    require(measurements, ["system", "length", "prefill_seconds"], "measurements")
    require(predictions, ["system", "length", "cache_bytes"], "predictions")
    seconds = _quartiles(measurements, "prefill_seconds")
    cache = _quartiles(predictions, "cache_bytes")
    both = pl.concat([seconds, cache])
    if both.is_empty():
        return blank(_TITLE, "Neither time nor cache was measured")
    systems = list(dict.fromkeys(names(measurements, "system") + names(predictions, "system")))
    lengths = sorted(both["length"].unique())
    panels = []
    if len(seconds):
        axis = alt.Axis(values=_ticks(seconds, 10), labelExpr=SECONDS_LABEL, labelOverlap=False)
        panels.append(_panel(seconds, "Prefill time", "seconds", axis, lengths, systems, unit))
    if len(cache):
        axis = alt.Axis(values=_ticks(cache, 2), labelExpr=BYTES_LABEL, labelOverlap=False)
        panels.append(_panel(cache, "Cache size", "bytes", axis, lengths, systems, unit))
    return styled(
        alt.hconcat(*panels, spacing=40),
        _TITLE,
        [
            "Medians, with quartiles as bars; systems side by side at each length",
            counted(both["n"], "prompts a point, all tasks together"),
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
            low=value.quantile(0.25, "linear"),
            high=value.quantile(0.75, "linear"),
        )
    )


def _ticks(table: pl.DataFrame, base: int) -> list[float]:
    return log_ticks(table["low"].min(), table["high"].max(), base)


def _panel(
    table: pl.DataFrame,
    title: str,
    measure: str,
    axis: alt.Axis,
    lengths: list[int],
    systems: list[str],
    unit: str,
) -> alt.LayerChart:
    domain = [axis["values"][0], axis["values"][-1]]
    scale = alt.Scale(type="log", domain=domain, nice=False)
    y = {"title": f"{title} (log scale)", "scale": scale, "axis": axis}
    number = ",.0f" if measure == "bytes" else ".4~r"
    look = told_apart("system", systems, "System")
    shared = alt.Chart(inline(side_by_side(table, lengths, _WIDTH))).encode(
        x=length_axis(lengths, _WIDTH, "x", unit), color=look["color"]
    )
    lines = shared.mark_line(strokeWidth=2).encode(
        y=alt.Y("median:Q", **y), strokeDash=look["strokeDash"]
    )
    bars = shared.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", **y), y2="high:Q")
    points = shared.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
        y=alt.Y("median:Q", **y),
        shape=look["shape"],
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
            alt.Tooltip("median:Q", title=f"{title} ({measure})", format=number),
            alt.Tooltip("low:Q", title="Lower quartile", format=number),
            alt.Tooltip("high:Q", title="Upper quartile", format=number),
            alt.Tooltip("n:Q", title="Prompts"),
        ],
    )
    return alt.layer(bars, lines, points).properties(width=_WIDTH, height=_HEIGHT)
