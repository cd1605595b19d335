"""Heatmaps of accuracy by needle depth and context length, of every system."""

import altair as alt
import polars as pl

from needlework.figures.style.skipped_cells import (
    GREY,
    MARK,
    skip_notes,
    skip_tooltip,
    skipped_cells,
)
from needlework.figures.style.theme import (
    SEQUENTIAL,
    distinct,
    inline,
    metrics_line,
    panel_header,
    sample_size,
    styled,
)
from needlework.tables.columns import require

_MAX_PANELS_PER_ROW = 4


def heatmap(
    summary: pl.DataFrame,
    task: str | None = None,
    metric: str = "all",
    length_unit: str = "tokens",
) -> alt.Chart:
    """Accuracy by needle depth (down) and context length (across), one panel per system.

    Args:
        summary: system, task, length, depth_percent (0-100; null rows are not used), metric, n,
            accuracy (0-1), skip_reason. Cells with a skip_reason were not run and are grey and
            crossed.
        task: one task, its systems wrapped over rows; None: one row per task, one column per
            system.
        metric: all, part, exact, rouge_l or token_f1. Under `all`, n counts needles.
        length_unit: unit of the lengths.

    Raises:
        ValueError: if no row has this task, this metric and a depth.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    require(summary, columns, "summary")
    cells = summary.filter(pl.col("metric") == metric, pl.col("depth_percent").is_not_null())
    if task is not None:
        cells = cells.filter(pl.col("task") == task)
    skipped = skipped_cells(summary, task)
    if cells.is_empty() and skipped.is_empty():
        raise ValueError(
            f"summary: no cell with a needle depth for task {task or '(any)'} and metric {metric}; "
            "choose a task with needles"
        )
    keys = pl.concat([cells.select("system", "task", "length"), skipped.drop("skip_reason")])
    systems, tasks = distinct(keys, "system"), distinct(keys, "task")
    lengths = sorted(keys["length"].unique())
    depths = sorted(cells["depth_percent"].unique()) or [0.0, 100.0]

    counted = "needles" if metric == "all" else "answers"
    panels_per_row = len(systems) if task is None else min(len(systems), _MAX_PANELS_PER_ROW)
    step_x = min(max(1000 / (panels_per_row * len(lengths)), 30, 150 / len(lengths)), 150)
    step_y = min(max(260 / len(depths), 16), 40)
    base = alt.Chart().encode(
        x=alt.X("length:O", title=f"Context length ({length_unit})", sort=lengths).axis(
            format=",d",
            labelAngle=0 if step_x >= 54 else -45,
            labelOverlap=False,
            ticks=False,
            domain=False,
        ),
        y=alt.Y("depth_percent:O", title="Needle depth (%)", sort=depths).axis(
            format=".3~g", labelOverlap=False, ticks=False, domain=False
        ),
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("task:N", title="Task"),
            alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
            alt.Tooltip("depth_percent:Q", title="Depth (%)", format=".3~g"),
            alt.Tooltip("percent:Q", title="Accuracy (%)", format=".1f"),
            alt.Tooltip("n:Q", title=counted.capitalize()),
        ],
    )
    run = base.transform_filter("isValid(datum.percent)")
    squares = run.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("percent:Q", title="Accuracy (%)")
        .scale(scheme=SEQUENTIAL, domain=[0, 100])
        # A panel may be shorter than a full legend; a minimum keeps the end labels legible.
        .legend(
            gradientLength=min(max(step_y * len(depths), 100), 260), values=list(range(0, 101, 25))
        )
    )
    numbers = run.mark_text(fontSize=11 if step_x >= 36 else 10).encode(
        text=alt.Text("percent:Q", format=".0f"),
        color=alt.condition("datum.percent < 50", alt.value("white"), alt.value("black")),
    )
    not_run = base.transform_filter("isValid(datum.skip_reason)").encode(
        tooltip=skip_tooltip(length_unit)
    )
    greys = not_run.mark_rect(fill=GREY, stroke="white", strokeWidth=0.5)
    crosses = not_run.mark_text(text=MARK, color="#666666")
    layers = [squares, numbers] if skipped.is_empty() else [squares, numbers, greys, crosses]
    panel = alt.layer(*layers).properties(
        width=alt.Step(step_x), height=alt.Step(step_y), view=alt.ViewBackground(fill="#eeeeee")
    )
    data = cells.with_columns(percent=100 * pl.col("accuracy")).select(
        "system", "task", "length", "depth_percent", "percent", "n"
    )
    if len(skipped):
        all_depths = skipped.join(pl.DataFrame({"depth_percent": depths}), how="cross")
        data = pl.concat([data, all_depths], how="diagonal")
    width, height = step_x * len(lengths), step_y * len(depths)
    by_system = {"title": None, "sort": systems, "header": panel_header(systems, width)}
    if task is None:
        chart = panel.facet(
            data=inline(data),
            column=alt.Column("system:N", **by_system),
            row=alt.Row("task:N", title=None, sort=tasks, header=panel_header(tasks, height)),
        )
    else:
        chart = panel.facet(
            data=inline(data), facet=alt.Facet("system:N", **by_system), columns=panels_per_row
        )
        if len(systems) % panels_per_row:
            # A shared axis would be drawn below the empty places of the last row.
            chart = chart.resolve_axis(x="independent")
    return styled(
        chart,
        "Accuracy by needle depth and context length" + (f": {task}" if task else ""),
        [
            metrics_line({metric}),
            *([sample_size(cells["n"], f"{counted} per cell")] if len(cells) else []),
            *skip_notes(skipped),
        ],
    )
