"""Accuracy by thinking budget, next to truncated thoughts and empty answers."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.skipped_cells import skip_notes, skipped_cells
from needlework.figures.style.theme import (
    ACCURACY_TOOLTIPS,
    DASHES,
    SHAPES,
    categorical,
    distinct,
    inline,
    metrics_line,
    panel_header,
    sample_size,
    styled,
)
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 320, 240
_OUTCOMES = {"truncated_thought": "truncated thoughts", "empty": "empty answers"}


def thinking(
    summary: pl.DataFrame,
    budgets: Mapping[str, int],
    series: Mapping[str, str],
    metrics: Mapping[str, str] | None = None,
    length_unit: str = "tokens",
) -> alt.TopLevelMixin:
    """Accuracy (%) with its 95 % interval against the thinking budget, one row per task.

    Next to it are the shares (%) of answers that ended within their reasoning, and of empty ones.
    Colors are systems, shapes and dashes are lengths.

    Args:
        summary: system, task, length, depth_percent (only null rows are used), metric, n,
            accuracy, ci_low, ci_high (0-1), truncated_thought and empty (counts of n), skip_reason.
        budgets: each system to draw -> tokens that it may think.
        series: the same systems -> the name of their line; budgets within one differ.
        metrics: the metric of each task, by default `all`.
        length_unit: unit of the lengths.

    Raises:
        ValueError: none of the systems has a row.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    require(summary, [*columns, "ci_low", "ci_high", *_OUTCOMES], "summary")
    metric_of = {task: (metrics or {}).get(task, "all") for task in distinct(summary, "task")}
    task_metric = pl.col("task").replace_strict(metric_of, return_dtype=pl.String)
    cells = summary.filter(
        pl.col("metric") == task_metric,
        pl.col("depth_percent").is_null(),
        pl.col("system").is_in(list(budgets)),
    )
    require(cells, columns, f"summary of {', '.join(budgets)}")
    cells = cells.with_columns(
        budget=pl.col("system").replace_strict(dict(budgets), return_dtype=pl.Int64),
        series=pl.col("system").replace_strict(dict(series), return_dtype=pl.String),
        length_label=pl.col("length").map_elements("{:,}".format, return_dtype=pl.String),
    )
    tasks, lengths = distinct(cells, "task"), sorted(cells["length"].unique())
    kinds = {
        "accuracy": pl.col("accuracy"),
        **{name: pl.col(name) / pl.col("n") for name in _OUTCOMES},
    }
    titles = {"accuracy": "accuracy", **_OUTCOMES}
    panels = [f"{task}: {titles[kind]}" for task in tasks for kind in kinds]
    shown = ["system", "series", "task", "length", "length_label", "budget", "metric", "n"]
    data = pl.concat(
        [
            cells.select(
                *shown,
                panel=pl.format("{}: {}", "task", pl.lit(titles[kind])),
                percent=100 * share,
                ci_low=100 * pl.col("ci_low") if kind == "accuracy" else pl.lit(None, pl.Float64),
                ci_high=100 * pl.col("ci_high") if kind == "accuracy" else pl.lit(None, pl.Float64),
            )
            for kind, share in kinds.items()
        ]
    )
    chart = (
        alt.layer(*_marks(cells, lengths, length_unit))
        .properties(width=_WIDTH, height=_HEIGHT)
        .facet(
            data=inline(data),
            facet=alt.Facet(
                "panel:N", title=None, sort=panels, header=panel_header(panels, _WIDTH)
            ),
            columns=len(kinds),
        )
        .resolve_axis(x="independent", y="independent")
    )
    skipped = skipped_cells(summary).filter(pl.col("system").is_in(list(budgets)))
    return styled(
        chart,
        "Accuracy by thinking budget",
        [
            metrics_line(set(metric_of.values())),
            "Bars: 95 % intervals (Wilson). Truncated thoughts never closed; they and empty "
            "answers count as wrong",
            sample_size(cells["n"], "answers per point, all needle depths pooled"),
            *skip_notes(skipped),
        ],
    )


def _marks(cells: pl.DataFrame, lengths: list[int], length_unit: str) -> list[alt.Chart]:
    budgets = sorted(cells["budget"].unique())
    # Logarithmic, except that a budget of 0 has a place.
    scale = alt.Scale(type="symlog", constant=min([b for b in budgets if b] or [1]), nice=False)
    x = alt.X("budget:Q", title="Thinking budget (tokens, log scale)", scale=scale).axis(
        values=budgets,
        format=",d",
        labelAngle=0 if len(budgets) < 6 else -45,
        labelOverlap=False,
        labelFlush=False,
    )
    y = {
        "title": "Share of answers (%)",
        "scale": alt.Scale(domain=[0, 100]),
        "axis": alt.Axis(values=list(range(0, 101, 20))),
    }
    color = categorical("series", distinct(cells, "series"), "System")["color"]
    labels = [f"{length:,}" for length in lengths]
    title = f"Length ({length_unit})"

    def of_length(channel: type[alt.SchemaBase], values: list) -> alt.SchemaBase:
        cycled = [values[index % len(values)] for index in range(len(labels))]
        return channel("length_label:N", title=title).scale(domain=labels, range=cycled)

    dash, shape = of_length(alt.StrokeDash, DASHES), of_length(alt.Shape, SHAPES)
    base = alt.Chart().encode(x=x, color=color)
    percent = alt.Y("percent:Q", **y)
    bars = base.transform_filter("isValid(datum.ci_low)").mark_rule(opacity=0.6, strokeWidth=1.5)
    points = base.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1)
    tooltip = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("panel:N", title="Panel"),
        alt.Tooltip("metric:N", title="Metric"),
        alt.Tooltip("length:Q", title=title, format=","),
        alt.Tooltip("budget:Q", title="Thinking budget (tokens)", format=","),
        alt.Tooltip("percent:Q", title="Share (%)", format=".1f"),
        *ACCURACY_TOOLTIPS[1:],
        alt.Tooltip("n:Q", title="Answers"),
    ]
    return [
        bars.encode(y=alt.Y("ci_low:Q", **y), y2="ci_high:Q"),
        base.mark_line(strokeWidth=2).encode(y=percent, strokeDash=dash),
        points.encode(y=percent, shape=shape, tooltip=tooltip),
    ]
