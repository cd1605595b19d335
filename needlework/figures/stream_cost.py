"""Memory and speed along a stream, against position."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.axes import BYTES_LABEL, log_ticks, position_axis
from needlework.figures.style.theme import categorical, distinct, extent, inline, styled
from needlework.tables.columns import concat, require

_HEIGHT = 300
_BINS = 60


def stream_cost(
    measurements: Sequence[pl.DataFrame], chunks: Sequence[pl.DataFrame]
) -> alt.TopLevelMixin:
    """State bytes, memory bytes and tokens per second against position (log).

    A point is the median over the chunks in one of 60 equal bins of the log axis, all streams and
    shards pooled. Measured times and memory differ from run to run, and so does the figure.

    Args:
        measurements: tables of system, stream, shard, chunk, first_token, tokens, seconds,
            memory_bytes.
        chunks: tables of system, stream, shard, chunk, state_bytes.

    Raises:
        ValueError: if there is nothing to draw.
    """
    key = ["system", "stream", "shard", "chunk"]
    measured, states = concat(measurements), concat(chunks)
    require(measured, [*key, "first_token", "tokens", "seconds", "memory_bytes"], "measurements")
    require(states, [*key, "state_bytes"], "chunks")
    rows = measured.join(states.select(*key, "state_bytes"), on=key).with_columns(
        position=pl.col("first_token") + pl.col("tokens") / 2,
        speed=pl.col("tokens") / pl.col("seconds"),
    )
    first, last = extent(rows["position"])
    ratio = (last / first) ** (1 / _BINS)
    position_bin = pl.lit(0) if ratio == 1 else (pl.col("position") / first).log(ratio).floor()
    rows = (
        rows.with_columns(bin=position_bin)
        .group_by("system", "bin", maintain_order=True)
        .agg(pl.col("position", "speed", "memory_bytes", "state_bytes").median())
        .sort("position")
    )
    look = categorical("system", distinct(measured, "system"), "System")
    bytes_axis = {"base": 2, "labels": {"labelExpr": BYTES_LABEL}}
    speed_axis = {"base": 10, "labels": {"format": "~s"}}
    panels = [
        _panel(rows.filter(pl.col(column) > 0), column, title, axis, look)
        for column, title, axis in (
            ("state_bytes", "State", bytes_axis),
            ("memory_bytes", "Memory of the process or GPU", bytes_axis),
            ("speed", "Tokens per second", speed_axis),
        )
        if (rows[column] > 0).any()
    ]
    return styled(
        alt.hconcat(*panels, spacing=40),
        "Memory and speed by position",
        ["Medians over chunks; measured, so different from run to run"],
    )


def _panel(rows: pl.DataFrame, column: str, title: str, axis: dict, look: dict) -> alt.Chart:
    ticks = log_ticks(*extent(rows[column]), axis["base"])
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    y_axis = alt.Axis(values=ticks, labelOverlap=False, **axis["labels"])
    return (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=position_axis(rows["position"]),
            y=alt.Y(f"{column}:Q", title=f"{title} (log scale)", scale=scale, axis=y_axis),
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
