"""Perplexity along a stream, against position."""

import altair as alt
import polars as pl

from needlework.figures.style.axes import log_ticks, position_axis
from needlework.figures.style.theme import categorical, distinct, inline, styled, wrap_name
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 420, 300
_MODES = {
    "state": "exact, constant memory",
    "cache": "exact, memory grows",
    "strided": "windows, an approximation",
}


def stream_perplexity(positions: pl.DataFrame, streams: pl.DataFrame) -> alt.TopLevelMixin:
    """Perplexity by doubling of the position, all systems, one panel per stream; both axes log.

    Args:
        positions: system, stream, position, first_position, end_position, tokens, perplexity,
            ci_low, ci_high (null: no interval), from `scoring.positions.by_position`.
        streams: system, stream, mode (state, cache or strided), is_likelihood (bool).

    Raises:
        ValueError: if there is nothing to draw.
    """
    columns = ["system", "stream", "position", "first_position", "end_position", "tokens"]
    require(positions, [*columns, "perplexity", "ci_low", "ci_high"], "positions")
    table = positions.join(
        streams.select("system", "stream", "mode", "is_likelihood"),
        on=["system", "stream"],
        maintain_order="left",
    )
    remark = pl.when("is_likelihood").then(pl.lit("")).otherwise(pl.lit(", no likelihood"))
    table = table.with_columns(system=pl.format("{} ({}{})", "system", "mode", remark))
    look = categorical("system", distinct(table, "system"), "System (mode)")
    panels = []
    for stream in distinct(positions, "stream"):
        rows = table.filter(pl.col("stream") == stream)
        lowest = rows.select(pl.min_horizontal("ci_low", "perplexity").min()).item()
        highest = rows.select(pl.max_horizontal("ci_high", "perplexity").max()).item()
        # No perplexity is below 1; an interval may reach slightly lower.
        ticks = log_ticks(max(1.0, lowest), highest, 10)
        axis = alt.Axis(values=ticks, format="~s", labelOverlap=True)
        scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False, clamp=True)
        y = {"title": "Perplexity (log scale)", "scale": scale, "axis": axis}
        base = alt.Chart(inline(rows)).encode(
            x=position_axis(rows["position"]), color=look["color"]
        )
        tooltip = [
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("first_position:Q", title="From position", format=","),
            alt.Tooltip("end_position:Q", title="Up to (exclusive)", format=","),
            alt.Tooltip("tokens:Q", title="Tokens", format=","),
            alt.Tooltip("perplexity:Q", title="Perplexity", format=",.4~r"),
            alt.Tooltip("ci_low:Q", title="Lower bound", format=",.4~r"),
            alt.Tooltip("ci_high:Q", title="Upper bound", format=",.4~r"),
        ]
        marks = [
            base.transform_filter("isValid(datum.ci_low)")
            .mark_rule(opacity=0.6, strokeWidth=1.5)
            .encode(y=alt.Y("ci_low:Q", **y), y2="ci_high:Q"),
            base.mark_line(strokeWidth=2).encode(
                y=alt.Y("perplexity:Q", **y), strokeDash=look["strokeDash"]
            ),
            base.mark_point(filled=False, size=50, strokeWidth=1.8, opacity=1).encode(
                y=alt.Y("perplexity:Q", **y), shape=look["shape"], tooltip=tooltip
            ),
        ]
        panel = alt.layer(*marks).properties(width=_WIDTH, height=_HEIGHT, title=wrap_name(stream))
        panels.append(panel)
    remarks = []
    if not table["is_likelihood"].all():
        remarks = ["no likelihood: blocks are chosen by later tokens too (choose: block)"]
    modes = "; ".join(f"{mode}: {label}" for mode, label in _MODES.items() if mode in table["mode"])
    return styled(
        alt.hconcat(*panels, spacing=40),
        "Perplexity by position",
        [
            "One point per doubling of the position; bars: 95 % intervals over its sixteen spans",
            modes,
            *remarks,
        ],
    )
