"""Accuracy against measured density, with the Pareto front."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.axes import log_ticks
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

_STAGES = ["prefill", "decode"]
_CELL = ["task", "length", "stage"]
_WIDTH, _HEIGHT = 400, 280


def pareto(
    summary: pl.DataFrame,
    families: Mapping[str, str],
    dense: str | None = None,
    metrics: Mapping[str, str] | None = None,
    length_unit: str = "tokens",
) -> alt.Chart:
    """Accuracy (%) against density (%, log scale), one point per system and length.

    One row of panels per task, prefill and decode in separate panels. The Pareto front of each
    length is filled and joined by steps: no other system is as accurate with less density, or more
    accurate with as much. Dashed lines are the accuracy of the dense system. Density is that of the
    whole model, dense layers included, so that systems with different dense layers compare.

    Args:
        summary: system, task, length, depth_percent (only null rows are used), metric, n,
            accuracy, ci_low, ci_high, prefill_density, decode_density, and the same of the sparse
            layers in sparse_layers_prefill_density, sparse_layers_decode_density (0-1; null: not
            measured).
        families: each system to draw -> its sweep, or its own name; one shape per family.
        dense: the system of the dashed lines, if there is one.
        metrics: the metric of each task, by default `all`.
        length_unit: unit of the lengths.

    Raises:
        ValueError: if none of the systems has a measured density.
    """
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    densities = [f"{stage}_density" for stage in _STAGES]
    of_sparse_layers = [f"sparse_layers_{name}" for name in densities]
    require(summary, [*columns, "ci_low", "ci_high", *densities, *of_sparse_layers], "summary")
    tasks, lengths = distinct(summary, "task"), sorted(summary["length"].unique())
    metric_of = {task: (metrics or {}).get(task, "all") for task in tasks}
    task_metric = pl.col("task").replace_strict(metric_of, return_dtype=pl.String)
    cells = summary.filter(pl.col("metric") == task_metric, pl.col("depth_percent").is_null())
    points = mark_front(
        cells.filter(pl.col("system").is_in(list(families)))
        .unpivot(
            on=densities,
            index=[*columns, "ci_low", "ci_high", *of_sparse_layers],
            variable_name="stage",
            value_name="density",
        )
        .drop_nulls("density")
        .with_columns(
            pl.col("stage").str.strip_suffix("_density"),
            family=pl.col("system").replace_strict(families, return_dtype=pl.String, default=None),
        )
        .with_columns(
            sparse_layers=pl.when(pl.col("stage") == "prefill")
            .then("sparse_layers_prefill_density")
            .otherwise("sparse_layers_decode_density")
        )
    )
    if points.is_empty():
        raise ValueError(
            f"summary: no measured density of {', '.join(families) or 'any system'}; evaluate a "
            "sparse system"
        )
    stages = [stage for stage in _STAGES if stage in points["stage"]]
    lines = cells.filter(pl.col("system").is_in([dense] if dense else [])).join(
        pl.DataFrame({"stage": stages}), how="cross"
    )
    panels = {(task, stage): f"{task}, {stage}" for task in tasks for stage in stages}
    data = pl.concat([points, lines], how="diagonal").select(
        "system",
        "family",
        *_CELL,
        "metric",
        "n",
        "is_front",
        panel=pl.concat_str("task", "stage", separator=", "),
        length_label=pl.col("length").map_elements("{:,}".format, return_dtype=pl.String),
        density=100 * pl.col("density"),
        sparse_layers=100 * pl.col("sparse_layers"),
        percent=100 * pl.col("accuracy"),
        ci_low=100 * pl.col("ci_low"),
        ci_high=100 * pl.col("ci_high"),
    )
    chart = (
        alt.layer(*_marks(points, list(dict.fromkeys(families.values())), lengths, length_unit))
        .properties(width=_WIDTH, height=_HEIGHT)
        .facet(
            data=inline(data),
            facet=panel_facet("panel", panels.values(), _WIDTH),
            columns=len(stages),
        )
        .resolve_axis(x="independent", y="independent")
    )
    dashed = f"Dashed: {dense}, for reference. " if len(lines) else ""
    return styled(
        chart,
        "Accuracy by measured density",
        [
            f"{dashed}Filled and joined: Pareto front of each length",
            "Density: pairs kept in all full-attention layers of the model, dense ones included",
            metrics_line(set(metric_of.values())),
            sample_size(points["n"], "answers per point, all needle depths pooled"),
        ],
    )


def mark_front(points: pl.DataFrame) -> pl.DataFrame:
    """Add is_front: no other point of the same task, length and stage is better.

    Better is at most as dense and at least as accurate, and different in one of them. Densities
    equal in two digits count as equal, because systems that keep the same number of blocks never
    measure exactly the same.
    """
    cell, rounded = pl.struct(*_CELL), pl.col("density").round_sig_figs(2)
    ordered = points.with_row_index("row").with_columns(rounded=rounded)
    ordered = ordered.sort(*_CELL, "rounded", pl.col("accuracy").neg())
    # In order of density, a point is on the front if it is above all before it, or equals the last
    # point that was.
    best = pl.col("accuracy").cum_max().over(cell)
    ordered = ordered.with_columns(best=best)
    lowest = pl.col("rounded").min().over(pl.struct(*_CELL, "best"))
    is_front = (pl.col("accuracy") == pl.col("best")) & (pl.col("rounded") == lowest)
    return ordered.with_columns(is_front=is_front).sort("row").drop("row", "rounded", "best")


def _marks(
    points: pl.DataFrame, families: list[str], lengths: list[int], length_unit: str
) -> list[alt.Chart]:
    ticks = log_ticks(100 * min(*points["density"], 0.5), 100, 10)
    scale = alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
    x = alt.X(
        "density:Q", title="Density of the whole model (% of causal pairs, log scale)", scale=scale
    ).axis(values=ticks, format="~g", labelOverlap=False)
    y = alt.Y("percent:Q", title="Accuracy (%)").scale(domain=[0, 100])
    y = y.axis(values=list(range(0, 101, 20)))
    labels = [f"{length:,}" for length in lengths]
    color = (
        alt.Color("length_label:N", title=f"Length ({length_unit})", sort=labels)
        .scale(
            domain=labels,
            scheme=alt.SchemeParams("viridis", extent=[0, 0.9]),
        )
        .legend(symbolType="stroke")
    )
    tooltip = [
        alt.Tooltip("system:N", title="System"),
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
        alt.Tooltip("metric:N", title="Metric"),
        *ACCURACY_TOOLTIPS,
        alt.Tooltip("n:Q", title="Answers"),
    ]
    density_tooltip = [
        alt.Tooltip("stage:N", title="Stage"),
        alt.Tooltip("density:Q", title="Density of the whole model (%)", format=".2f"),
        alt.Tooltip("sparse_layers:Q", title="Density of the sparse layers (%)", format=".2f"),
    ]
    base = alt.Chart().encode(y=y, color=color)
    placed = base.encode(x=x)
    shape = categorical("family", families, "System")["shape"]
    dense_lines = (
        base.transform_filter("!isValid(datum.density)")
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
        .encode(tooltip=tooltip)
    )
    steps = placed.transform_filter("datum.is_front").mark_line(
        interpolate="step-after", strokeWidth=1.5
    )
    shown = placed.transform_filter("isValid(datum.density)").encode(
        shape=shape, tooltip=[*tooltip, *density_tooltip]
    )
    return [
        dense_lines,
        steps,
        shown.mark_point(filled=False, size=60, strokeWidth=1.8, opacity=1),
        shown.transform_filter("datum.is_front").mark_point(filled=True, size=90, opacity=1),
    ]
