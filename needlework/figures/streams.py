"""Perplexity, memory and speed along a stream, against position."""

import altair as alt
import polars as pl

from needlework.figures.style.axes import BYTES_LABEL, log_ticks
from needlework.figures.style.theme import inline, names, styled, told_apart
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 420, 300
_POINTS = 60
_MODES = {
    "state": "exact, constant memory",
    "cache": "exact, memory grows",
    "strided": "windows, an approximation",
}


def stream_perplexity(positions: pl.DataFrame, modes: pl.DataFrame) -> alt.TopLevelMixin:
    """Perplexity by doubling of the position, all systems, a panel a stream; both axes log.

    Args:
        positions: system, stream, position, first_position, end_position, tokens, perplexity, ci_low,
            ci_high (null: no interval), as `scoring.positions.by_position` makes them.
        modes: system, stream, mode (state, cache or strided).

    Raises:
        ValueError: if there is nothing to draw.
    """
    columns = ["system", "stream", "position", "first_position", "end_position", "tokens"]
    require(positions, [*columns, "perplexity", "ci_low", "ci_high"], "positions")
    streams = names(positions, "stream")
    table = positions.join(
        modes.select("system", "stream", "mode"), on=["system", "stream"], maintain_order="left"
    ).with_columns(pl.format("{} ({})", "system", "mode").alias("system"))
    look = told_apart("system", names(table, "system"), "System (mode)")
    panels = []
    for stream in streams:
        rows = table.filter(pl.col("stream") == stream)
        lowest = rows.select(pl.min_horizontal("ci_low", "perplexity").min()).item()
        highest = rows.select(pl.max_horizontal("ci_high", "perplexity").max()).item()
        # No perplexity is below 1; an interval may reach a little further.
        ticks = log_ticks(max(1.0, lowest), highest, 10)
        axis = alt.Axis(values=ticks, format="~s", labelOverlap=True)
        scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False, clamp=True)
        y = {"title": "Perplexity (log scale)", "scale": scale, "axis": axis}
        base = alt.Chart(inline(rows)).encode(x=_position(rows["position"]), color=look["color"])
        tooltip = [
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("first_position:Q", title="From position", format=","),
            alt.Tooltip("end_position:Q", title="To before", format=","),
            alt.Tooltip("tokens:Q", title="Tokens", format=","),
            alt.Tooltip("perplexity:Q", title="Perplexity", format=",.4~r"),
            alt.Tooltip("ci_low:Q", title="Low", format=",.4~r"),
            alt.Tooltip("ci_high:Q", title="High", format=",.4~r"),
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
        panel = alt.layer(*marks).properties(width=_WIDTH, height=_HEIGHT, title=stream)
        panels.append(panel)
    told = [f"{mode}: {_MODES[mode]}" for mode in _MODES if mode in table["mode"]]
    return styled(
        alt.hconcat(*panels, spacing=40),
        "Perplexity by position",
        [
            "A point a doubling of the position; bars: 95 % intervals over its sixteenths",
            "; ".join(told),
        ],
    )


def stream_cost(measurements: pl.DataFrame, chunks: pl.DataFrame) -> alt.TopLevelMixin:
    """Bytes carried on, bytes of memory, and tokens a second against position; log position.

    Each point is the median over chunks of one of 60 equal parts of the log axis. Drawn from
    measured times and memory, so not the same from run to run. All streams and shards together.

    Args:
        measurements: system, stream, shard, chunk, first_token, tokens, seconds, memory_bytes.
        chunks: system, stream, shard, chunk, state_bytes.

    Raises:
        ValueError: if there is nothing to draw.
    """
    which = ["system", "stream", "shard", "chunk"]
    require(measurements, [*which, "first_token", "tokens", "seconds", "memory_bytes"], "measured")
    require(chunks, [*which, "state_bytes"], "chunks")
    systems = names(measurements, "system")
    rows = measurements.join(chunks.select(*which, "state_bytes"), on=which).with_columns(
        position=pl.col("first_token") + pl.col("tokens") / 2,
        speed=pl.col("tokens") / pl.col("seconds"),
    )
    span = (rows["position"].max() / rows["position"].min()) ** (1 / _POINTS)
    part = (
        pl.lit(0) if span == 1 else (pl.col("position") / rows["position"].min()).log(span).floor()
    )
    rows = (
        rows.with_columns(part=part)
        .group_by("system", "part", maintain_order=True)
        .agg(pl.col("position", "speed", "memory_bytes", "state_bytes").median())
        .sort("position")
    )
    look = told_apart("system", systems, "System")
    bytes_axis = {"base": 2, "labels": {"labelExpr": BYTES_LABEL}}
    speed_axis = {"base": 10, "labels": {"format": "~s"}}
    panels = [
        _cost_panel(rows.filter(pl.col(column) > 0), column, title, axis, look)
        for column, title, axis in (
            ("state_bytes", "State carried on", bytes_axis),
            ("memory_bytes", "Memory of the process or GPU", bytes_axis),
            ("speed", "Tokens a second", speed_axis),
        )
        if rows[column].max() > 0
    ]
    return styled(
        alt.hconcat(*panels, spacing=40),
        "Memory and speed by position",
        ["Medians over chunks; measured, so not the same from run to run"],
    )


def _cost_panel(rows: pl.DataFrame, column: str, title: str, axis: dict, look: dict) -> alt.Chart:
    ticks = log_ticks(rows[column].min(), rows[column].max(), axis["base"])
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    shown = alt.Axis(values=ticks, labelOverlap=False, **axis["labels"])
    return (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=_position(rows["position"]),
            y=alt.Y(f"{column}:Q", title=f"{title} (log scale)", scale=scale, axis=shown),
            color=look["color"],
            strokeDash=look["strokeDash"],
            tooltip=[
                alt.Tooltip("system:N", title="System"),
                alt.Tooltip("position:Q", title="Position", format=",.0f"),
                alt.Tooltip(f"{column}:Q", title=title, format=",.0f"),
            ],
        )
        .properties(width=360, height=_HEIGHT)
    )


def _position(positions: pl.Series) -> alt.X:
    ticks = log_ticks(positions.min(), positions.max(), 10)
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    axis = alt.Axis(values=ticks, format="~s", labelOverlap=True)
    return alt.X("position:Q", title="Position (tokens, log scale)", scale=scale, axis=axis)
