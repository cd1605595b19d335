"""Depth x length heatmaps of every system."""

import altair as alt
import polars as pl

from needlework.figures.style.skipped_cells import GREY, MARK, gaps_of, told, tooltip
from needlework.figures.style.theme import METRICS, SEQUENTIAL, counted, inline, names, styled
from needlework.tables.columns import require

_MOST_COLUMNS = 4


def heatmap(
    summary: pl.DataFrame,
    task: str | None = None,
    metric: str = "all",
    unit: str = "tokens",
) -> alt.Chart:
    """Accuracy by needle depth (down) and context length (across), one panel a system.

    Args:
        summary: system, task, length, depth_percent (0-100; rows without are left out),
            metric, n, accuracy (0-1), ci_low, ci_high, prefill_density, decode_density; skip_reason, the
            reason, in rows of cells that were not run, which are grey and crossed.
        task: one task, its systems wrapped over rows; or None: one row a task, one column a system.
        metric: all, part, exact, rouge_l or token_f1. Under `all` cells count needles.
        unit: of the lengths.

    Raises:
        ValueError: if no row has this task and metric and a depth.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    require(summary, columns, "summary")
    cells = summary.filter(pl.col("metric") == metric, pl.col("depth_percent").is_not_null())
    if task is not None:
        cells = cells.filter(pl.col("task") == task)
    gaps = gaps_of(summary, task)
    if cells.is_empty() and gaps.is_empty():
        raise ValueError(
            f"summary: no cell with a needle depth for task {task or '(any)'} and metric {metric}; "
            "draw a task with needles"
        )
    keys = pl.concat([cells.select("system", "task", "length"), gaps.drop("skip_reason")])
    systems, tasks = names(keys, "system"), names(keys, "task")
    lengths = sorted(keys["length"].unique())
    depths = sorted(cells["depth_percent"].unique()) or [0.0, 100.0]

    counts = "needles" if metric == "all" else "answers"
    across = len(systems) if task is None else min(len(systems), _MOST_COLUMNS)
    step_x = min(max(1000 / (across * len(lengths)), 30, 150 / len(lengths)), 150)
    step_y = min(max(260 / len(depths), 16), 40)
    base = alt.Chart().encode(
        x=alt.X("length:O", title=f"Context length ({unit})", sort=lengths).axis(
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
            alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
            alt.Tooltip("depth_percent:Q", title="Depth (%)", format=".3~g"),
            alt.Tooltip("percent:Q", title="Accuracy (%)", format=".1f"),
            alt.Tooltip("n:Q", title=counts.capitalize()),
        ],
    )
    answered = base.transform_filter("isValid(datum.percent)")
    squares = answered.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("percent:Q", title="Accuracy (%)")
        .scale(scheme=SEQUENTIAL, domain=[0, 100])
        # One panel is shorter than a full legend; the bar keeps its ends legible.
        .legend(
            gradientLength=min(max(step_y * len(depths), 100), 260), values=list(range(0, 101, 25))
        )
    )
    numbers = answered.mark_text(fontSize=11 if step_x >= 36 else 10).encode(
        text=alt.Text("percent:Q", format=".0f"),
        color=alt.condition("datum.percent < 50", alt.value("white"), alt.value("black")),
    )
    missing = base.transform_filter("isValid(datum.skip_reason)").encode(tooltip=tooltip(unit))
    greys, crosses = (
        missing.mark_rect(fill=GREY, stroke="white", strokeWidth=0.5),
        missing.mark_text(text=MARK, color="#666666"),
    )
    layers = [squares, numbers] if gaps.is_empty() else [squares, numbers, greys, crosses]
    panel = alt.layer(*layers).properties(
        width=alt.Step(step_x), height=alt.Step(step_y), view=alt.ViewBackground(fill="#eeeeee")
    )
    data = cells.with_columns(percent=100 * pl.col("accuracy")).select(
        "system", "task", "length", "depth_percent", "percent", "n"
    )
    if len(gaps):
        whole = gaps.join(pl.DataFrame({"depth_percent": depths}), how="cross")
        data = pl.concat([data, whole], how="diagonal")
    system = {"title": None, "sort": systems}
    if task is None:
        chart = panel.facet(
            data=inline(data),
            column=alt.Column("system:N", **system),
            row=alt.Row("task:N", title=None, sort=tasks),
        )
    else:
        chart = panel.facet(
            data=inline(data), facet=alt.Facet("system:N", **system), columns=across
        )
        if len(systems) % across:
            # A shared axis would stand at the very bottom, below the empty places of the last row.
            chart = chart.resolve_axis(x="independent")
    return styled(
        chart,
        "Accuracy by needle depth and context length" + (f": {task}" if task else ""),
        [
            f"Metric {metric}: {METRICS[metric]}",
            *([counted(cells["n"], f"{counts} a cell")] if len(cells) else []),
            *told(gaps),
        ],
    )
