"""Accuracy against context length, all systems."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.axes import length_axis, side_by_side
from needlework.figures.style.skipped_cells import MARK, gaps_of, told, tooltip
from needlework.figures.style.theme import (
    ACCURACY,
    METRICS,
    counted,
    inline,
    names,
    styled,
    told_apart,
)
from needlework.tables.columns import require

_MOST_BANDS = 4


def accuracy(
    summary: pl.DataFrame, metrics: Mapping[str, str] | None = None, unit: str = "tokens"
) -> alt.Chart:
    """Accuracy (%) with its 95 % interval against length, one panel a task.

    Intervals are bars, and up to four systems bands too. More systems, or systems at a single
    length, stand some pixels beside each other, so that their bars do not hide each other.

    Args:
        summary: system, task, length, depth_percent (rows with one are left out), metric,
            n, accuracy, ci_low, ci_high (0-1); skip_reason, the reason, in rows of cells that were not run,
            which are crosses at the foot of their panel.
        metrics: the metric of each task; `all` for a task not named. Where they differ, each
            panel names its own.
        unit: of the lengths.

    Raises:
        ValueError: if a task has no row of its metric with all depths together.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    require(summary, [*columns, "ci_low", "ci_high"], "summary")
    chosen = {task: (metrics or {}).get(task, "all") for task in names(summary, "task")}
    own = pl.col("task").replace_strict(chosen, return_dtype=pl.String)
    cells = summary.filter(pl.col("metric") == own, pl.col("depth_percent").is_null())
    gaps = gaps_of(summary)
    keys = pl.concat([cells.select("system", "task", "length"), gaps.drop("skip_reason")])
    systems, tasks = names(keys, "system"), names(keys, "task")
    for task, metric in chosen.items():
        if task not in tasks:
            raise ValueError(
                f"summary: no all-depths row of metric {metric} for task {task}; "
                "summarize the scores again"
            )
    shown = [metric for metric in METRICS if metric in chosen.values()]
    panels = {task: task if len(shown) == 1 else f"{task} ({chosen[task]})" for task in tasks}
    lengths = sorted(keys["length"].unique())
    across = min(len(tasks), 3)
    width, height = {1: (560, 340), 2: (420, 280), 3: (320, 220)}[across]

    panel_of = pl.col("task").replace_strict(panels, return_dtype=pl.String)
    data = cells.select(
        "system",
        "task",
        "length",
        "metric",
        "n",
        panel=panel_of,
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    if len(gaps):
        data = pl.concat([data, gaps.with_columns(panel=panel_of)], how="diagonal")
    apart = len(systems) > _MOST_BANDS or len(lengths) == 1
    if apart:
        data = side_by_side(data, lengths, width)
    else:
        data = data.with_columns(x=pl.col("length").cast(pl.Float64))

    look = told_apart("system", systems, "System")
    scale, axis = alt.Scale(domain=[0, 100]), alt.Axis(values=list(range(0, 101, 20)))
    percent = alt.Y("percent:Q", title="Accuracy (%)", scale=scale, axis=axis)
    interval = alt.Y("ci_low:Q", title="Accuracy (%)", scale=scale, axis=axis)
    every = alt.Chart().encode(x=length_axis(lengths, width, "x", unit))
    base = every.transform_filter("isValid(datum.percent)")
    colored = base.encode(color=look["color"])
    bands = base.mark_area(opacity=0.12).encode(y=interval, y2="ci_high:Q", fill=look["fill"])
    bars = colored.mark_rule(opacity=0.6, strokeWidth=1.5).encode(y=interval, y2="ci_high:Q")
    lines = colored.mark_line(strokeWidth=2).encode(y=percent, strokeDash=look["strokeDash"])
    points = colored.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
        y=percent,
        shape=look["shape"],
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("task:N", title="Task"),
            alt.Tooltip("metric:N", title="Metric"),
            alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
            *ACCURACY,
            alt.Tooltip("n:Q", title="Answers"),
        ],
    )
    crosses = (
        every.transform_filter("isValid(datum.skip_reason)")
        .mark_text(text=MARK, fontSize=15)
        .encode(y=alt.value(height - 8), color=look["color"], tooltip=tooltip(unit))
    )
    layers = [bars, lines, points] if apart else [bands, bars, lines, points]
    layers += [crosses] if len(gaps) else []
    chart = (
        alt.layer(*layers)
        .properties(width=width, height=height)
        .facet(
            data=inline(data),
            facet=alt.Facet("panel:N", title=None, sort=list(panels.values())),
            columns=across,
        )
        .resolve_axis(x="independent", y="independent")
    )
    beside = "; systems side by side at each length" if apart and len(systems) > 1 else ""
    return styled(
        chart,
        "Accuracy by context length",
        [
            f"Metric {'; '.join(f'{metric}: {METRICS[metric]}' for metric in shown)}",
            f"With 95 % intervals (Wilson){beside}",
            *(
                [counted(cells["n"], "answers a point, all needle depths together")]
                if len(cells)
                else []
            ),
            *told(gaps),
        ],
    )
