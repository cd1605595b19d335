"""Curves against the optimizer step, one line per trained model."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.axes import log_ticks
from needlework.figures.style.theme import categorical, extent, inline
from needlework.tables.columns import concat, require

WIDTH, HEIGHT = 420, 260
STEP = alt.X("step:Q", title="Step").scale(nice=False).axis(format=",d", tickMinStep=1)
GATE = r"^gate_layer(\d+)_head(\d+)$"


def require_all(
    tables: Sequence[pl.DataFrame], models: Sequence[str], columns: list[str], name: str
) -> None:
    """Raise ValueError unless there is a model, and every table has rows and these columns."""
    if not tables:
        raise ValueError("training: no model was trained, so there is nothing to draw")
    for model, table in zip(models, tables, strict=True):
        require(table, columns, f"{name} of {model}")


def stack(tables: Sequence[pl.DataFrame], models: Sequence[str]) -> pl.DataFrame:
    """The tables of all models with a column `model`, without gates; absent columns are null."""
    return concat(
        [
            table.select(
                pl.lit(model).alias("model"),
                pl.col("step").cast(pl.Int64),
                pl.exclude("step", GATE).cast(pl.Float64),
            )
            for model, table in zip(models, tables, strict=True)
        ]
    )


def log_curve(
    curves: pl.DataFrame,
    column: str,
    title: str,
    models: Sequence[str],
    *,
    base: int = 10,
    point: bool = False,
    **labels: str,
) -> alt.Chart:
    """`column` on a log axis; `labels` are properties of the axis such as format."""
    curves = curves.filter(pl.col(column) > 0)
    low, high = (1.0, 10.0) if curves.is_empty() else extent(curves[column])
    ticks = log_ticks(low, high, base)
    y = (
        alt.Y(f"{column}:Q", title=title)
        .scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
        .axis(values=ticks, labelOverlap=False, **{"format": "~g", **labels})
    )
    return curve(curves, column, title, y, models, point=point)


def curve(
    curves: pl.DataFrame,
    column: str,
    title: str,
    y: alt.Y,
    models: Sequence[str],
    *,
    point: bool = False,
) -> alt.Chart:
    """`column` on the axis `y`."""
    look = categorical("model", list(models), "Model")
    return (
        alt.Chart(inline(curves.select("model", "step", column)))
        .mark_line(strokeWidth=2, point=point)
        .encode(
            x=STEP,
            y=y,
            color=look["color"],
            strokeDash=look["strokeDash"],
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("step:Q", title="Step", format=","),
                alt.Tooltip(f"{column}:Q", title=title.split(" (")[0], format=".4~g"),
            ],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
