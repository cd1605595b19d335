"""Accuracy by needle depth before and after fine-tuning."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.theme import (
    ACCURACY_TOOLTIPS,
    categorical,
    distinct,
    inline,
    metrics_line,
    panel_facet,
    sample_size,
    styled,
)
from needlework.tables.columns import require

_WIDTH = 360


def finetuning(
    depths: pl.DataFrame,
    before: Mapping[str, str],
    metrics: Mapping[str, str] | None = None,
) -> alt.Chart:
    """Accuracy (%) with its 95 % interval against needle depth, one panel per task.

    Args:
        depths: system, task, depth_percent (0-100), metric, n, accuracy, ci_low, ci_high (0-1), all
            lengths pooled, from `scoring.summarize.pool_lengths`.
        before: a system of a fine-tuned model -> the system of the model it was fine-tuned from.
        metrics: the metric of each task, by default `all`.

    Raises:
        ValueError: if there is nothing to draw.
    """
    columns = ["system", "task", "depth_percent", "metric", "n", "accuracy", "ci_low", "ci_high"]
    require(depths, columns, "depths")
    labels = {base: f"{base} (before)" for base in before.values()}
    labels |= {system: f"{system} (after, from {base})" for system, base in before.items()}
    metric_of = {task: (metrics or {}).get(task, "all") for task in distinct(depths, "task")}
    task_metric = pl.col("task").replace_strict(metric_of, return_dtype=pl.String)
    cells = depths.filter(pl.col("metric") == task_metric, pl.col("system").is_in(list(labels)))
    require(cells, columns, f"depths of {', '.join(labels)}")
    tasks = distinct(cells, "task")
    data = cells.select(
        "task",
        "depth_percent",
        "metric",
        "n",
        system=pl.col("system").replace_strict(labels, return_dtype=pl.String),
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    look = categorical("system", list(labels.values()), "System")
    y = {
        "title": "Accuracy (%)",
        "scale": alt.Scale(domain=[0, 100]),
        "axis": alt.Axis(values=list(range(0, 101, 20))),
    }
    base = alt.Chart().encode(
        x=alt.X("depth_percent:Q", title="Needle depth (%)")
        .scale(domain=[0, 100], nice=False, padding=8)
        .axis(values=list(range(0, 101, 25)))
    )
    colored = base.encode(color=look["color"])
    interval = alt.Y("ci_low:Q", **y)
    percent = alt.Y("percent:Q", **y)
    layers = [
        base.mark_area(opacity=0.12).encode(y=interval, y2="ci_high:Q", fill=look["fill"]),
        colored.mark_line(strokeWidth=2).encode(y=percent, strokeDash=look["strokeDash"]),
        colored.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1).encode(
            y=percent,
            shape=look["shape"],
            tooltip=[
                alt.Tooltip("system:N", title="System"),
                alt.Tooltip("task:N", title="Task"),
                alt.Tooltip("metric:N", title="Metric"),
                alt.Tooltip("depth_percent:Q", title="Depth (%)", format=".3~g"),
                *ACCURACY_TOOLTIPS,
                alt.Tooltip("n:Q", title="Needles"),
            ],
        ),
    ]
    chart = (
        alt.layer(*layers)
        .properties(width=_WIDTH, height=260)
        .facet(
            data=inline(data),
            facet=panel_facet("task", tasks, _WIDTH),
            columns=min(len(tasks), 3),
        )
        .resolve_axis(x="independent", y="independent")
    )
    return styled(
        chart,
        "Accuracy by needle depth before and after fine-tuning",
        [
            metrics_line({metric_of[task] for task in tasks}),
            "Bands: 95 % intervals (Wilson)",
            sample_size(cells["n"], "needles per point, all lengths pooled"),
        ],
    )
