"""Accuracy against context length, all systems."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.axes import length_axis, side_by_side
from needlework.figures.style.skipped_cells import MARK, skip_notes, skip_tooltip, skipped_cells
from needlework.figures.style.theme import (
    ACCURACY_TOOLTIPS,
    METRIC_LABELS,
    categorical,
    distinct,
    inline,
    metrics_line,
    panel_facet,
    sample_size,
    styled,
)
from needlework.tables.columns import require

_MAX_BANDS = 4


def accuracy(
    summary: pl.DataFrame, metrics: Mapping[str, str] | None = None, length_unit: str = "tokens"
) -> alt.Chart:
    """Accuracy (%) with its 95 % interval against length, one panel per task.

    Intervals are bars, and with up to four systems also bands. With more systems, or a single
    length, systems are drawn a few pixels apart so that their bars do not hide each other.

    Args:
        summary: system, task, length, depth_percent (only null rows are used), metric, n,
            accuracy, ci_low, ci_high (0-1), skip_reason. Cells with a skip_reason were not run and
            are crosses at the foot of their panel.
        metrics: the metric of each task, by default `all`. If tasks have different metrics, each
            panel names its metric.
        length_unit: unit of the lengths.

    Raises:
        ValueError: if a task has no row of its metric with all depths pooled.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    require(summary, [*columns, "ci_low", "ci_high"], "summary")
    metric_of = {task: (metrics or {}).get(task, "all") for task in distinct(summary, "task")}
    task_metric = pl.col("task").replace_strict(metric_of, return_dtype=pl.String)
    cells = summary.filter(pl.col("metric") == task_metric, pl.col("depth_percent").is_null())
    skipped = skipped_cells(summary)
    keys = pl.concat([cells.select("system", "task", "length"), skipped.drop("skip_reason")])
    systems, tasks = distinct(keys, "system"), distinct(keys, "task")
    for task, metric in metric_of.items():
        if task not in tasks:
            raise ValueError(
                f"summary: no all-depths row of metric {metric} for task {task}; "
                "summarize the scores again"
            )
    shown = [metric for metric in METRIC_LABELS if metric in metric_of.values()]
    panels = {task: task if len(shown) == 1 else f"{task} ({metric_of[task]})" for task in tasks}
    lengths = sorted(keys["length"].unique())
    panels_per_row = min(len(tasks), 3)
    width, height = {1: (560, 340), 2: (420, 280), 3: (320, 220)}[panels_per_row]

    panel = pl.col("task").replace_strict(panels, return_dtype=pl.String)
    data = cells.select(
        "system",
        "task",
        "length",
        "metric",
        "n",
        panel=panel,
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    if len(skipped):
        data = pl.concat([data, skipped.with_columns(panel=panel)], how="diagonal")
    with_bands = len(systems) <= _MAX_BANDS and len(lengths) > 1
    if with_bands:
        data = data.with_columns(x=pl.col("length").cast(pl.Float64))
    else:
        data = side_by_side(data, lengths, width)

    look = categorical("system", systems, "System")
    scale, axis = alt.Scale(domain=[0, 100]), alt.Axis(values=list(range(0, 101, 20)))
    percent = alt.Y("percent:Q", title="Accuracy (%)", scale=scale, axis=axis)
    interval = alt.Y("ci_low:Q", title="Accuracy (%)", scale=scale, axis=axis)
    every = alt.Chart().encode(x=length_axis(lengths, width, "x", length_unit))
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
            alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
            *ACCURACY_TOOLTIPS,
            alt.Tooltip("n:Q", title="Answers"),
        ],
    )
    crosses = (
        every.transform_filter("isValid(datum.skip_reason)")
        .mark_text(text=MARK, fontSize=15)
        .encode(y=alt.value(height - 8), color=look["color"], tooltip=skip_tooltip(length_unit))
    )
    layers = [bands, bars, lines, points] if with_bands else [bars, lines, points]
    layers += [crosses] if len(skipped) else []
    chart = (
        alt.layer(*layers)
        .properties(width=width, height=height)
        .facet(
            data=inline(data),
            facet=panel_facet("panel", panels.values(), width),
            columns=panels_per_row,
        )
        .resolve_axis(x="independent", y="independent")
    )
    shifted = "" if with_bands or len(systems) == 1 else "; systems side by side at each length"
    return styled(
        chart,
        "Accuracy by context length",
        [
            metrics_line(set(shown)),
            f"With 95 % intervals (Wilson){shifted}",
            *(
                [sample_size(cells["n"], "answers per point, all needle depths pooled")]
                if len(cells)
                else []
            ),
            *skip_notes(skipped),
        ],
    )
