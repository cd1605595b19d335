"""Training curves: loss, learning rate, Infini gates; tokens a second and memory."""

import math
from collections.abc import Mapping

import altair as alt
import polars as pl

from needlework.figures.style.axes import BYTES_LABEL, log_ticks
from needlework.figures.style.theme import inline, styled, told_apart
from needlework.tables.columns import require

_WIDTH, _HEIGHT = 420, 260
_MOST_LINES = 32
_STEP = alt.X("step:Q", title="Step").scale(nice=False).axis(format=",d", tickMinStep=1)
_GATE = r"^gate_layer(\d+)_head(\d+)$"


def training(metrics: Mapping[str, pl.DataFrame]) -> alt.Chart:
    """Loss and learning rate against step, all models; below, the gates of each model with gates.

    Args:
        metrics: name of a model, or of gates that were distilled -> table with step, loss,
            learning_rate; where it was validated validation_loss, null between; and for a model
            with Infini gates a column gate_layer{l}_head{h} each.

    Raises:
        ValueError: if there is no model, or a table has no rows.
    """
    if not metrics:
        raise ValueError("training: no model was trained, so there is nothing to draw")
    for model, table in metrics.items():
        require(table, ["step", "loss", "learning_rate"], f"training metrics of {model}")
    models = list(metrics)
    curves = _together(metrics)
    rate = alt.Y("learning_rate:Q", title="Learning rate").axis(format=".2~g", tickCount=6)
    panels = [
        alt.hconcat(
            _log_curve(curves, "loss", "Loss (nats, log scale)", models),
            _curve(curves, "learning_rate", "Learning rate", rate, models),
            spacing=40,
        )
    ]
    if "validation_loss" in curves.columns:
        title = "Loss on held-out text (nats a token, log scale)"
        panels.append(_log_curve(curves, "validation_loss", title, models, point=True))
    gates = _gates(metrics)
    if len(gates):
        panels.append(_gate_panels(gates))
    steps = ", ".join(f"{table['step'].max():,} ({model})" for model, table in metrics.items())
    return styled(
        alt.vconcat(*panels, spacing=36).resolve_scale(
            color="independent", strokeDash="independent"
        ),
        "Training",
        [
            "Loss: mean over the tokens that are trained on; of gates, 10 KL summed over layers",
            f"n = {steps} steps",
        ],
    )


def training_cost(measurements: Mapping[str, pl.DataFrame]) -> alt.Chart:
    """Tokens a second and peak memory so far against step, all models.

    Drawn from measured times and memory, so not the same from run to run.

    Args:
        measurements: name of a model, or of gates that were distilled -> table with step,
            tokens_per_second, peak_memory_bytes.

    Raises:
        ValueError: if there is no model, or a table has no rows.
    """
    if not measurements:
        raise ValueError("training: no model was trained, so there is nothing to draw")
    for model, table in measurements.items():
        columns = ["step", "tokens_per_second", "peak_memory_bytes"]
        require(table, columns, f"training measurements of {model}")
    models, curves = list(measurements), _together(measurements)
    return styled(
        alt.hconcat(
            _log_curve(
                curves, "tokens_per_second", "Tokens a second (log scale)", models, format="~s"
            ),
            _log_curve(
                curves,
                "peak_memory_bytes",
                "Peak memory (log scale)",
                models,
                base=2,
                labelExpr=BYTES_LABEL,
            ),
            spacing=40,
        ),
        "Speed and memory of training",
        ["Measured, so not the same from run to run; memory: the peak so far of the main process"],
    )


def _together(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The curves of all models; a column that a table lacks is null."""
    return pl.concat(
        [
            table.select(
                pl.lit(model).alias("model"),
                pl.col("step").cast(pl.Int64),
                pl.exclude("step", _GATE).cast(pl.Float64),
            )
            for model, table in tables.items()
        ],
        how="diagonal",
    )


def _log_curve(
    curves: pl.DataFrame,
    column: str,
    title: str,
    models: list[str],
    *,
    base: int = 10,
    point: bool = False,
    **labels: str,
) -> alt.Chart:
    curves = curves.filter(pl.col(column) > 0)
    ticks = log_ticks(curves[column].min() or 1, curves[column].max() or 10, base)
    y = (
        alt.Y(f"{column}:Q", title=title)
        .scale(type="log", domain=[ticks[0], ticks[-1]], nice=False)
        .axis(values=ticks, labelOverlap=False, **{"format": "~g", **labels})
    )
    return _curve(curves, column, title, y, models, point=point)


def _curve(
    curves: pl.DataFrame,
    column: str,
    title: str,
    y: alt.Y,
    models: list[str],
    *,
    point: bool = False,
) -> alt.Chart:
    look = told_apart("model", models, "Model")
    return (
        alt.Chart(inline(curves.select("model", "step", column)))
        .mark_line(strokeWidth=2, point=point)
        .encode(
            x=_STEP,
            y=y,
            color=look["color"],
            strokeDash=look["strokeDash"],
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("step:Q", title="Step", format=","),
                alt.Tooltip(f"{column}:Q", title=title.split(" (")[0], format=".4~g"),
            ],
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )


def _gates(metrics: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    parts = [
        table.select("step", pl.col(_GATE).cast(pl.Float64))
        .unpivot(index="step", variable_name="gate", value_name="value")
        .select(
            pl.lit(model).alias("model"),
            pl.col("step").cast(pl.Int64),
            pl.col("gate").str.extract(_GATE, 1).cast(pl.Int64).alias("layer"),
            pl.col("gate").str.extract(_GATE, 2).cast(pl.Int64).alias("head"),
            "value",
        )
        for model, table in metrics.items()
        if any(column.startswith("gate_layer") for column in table.columns)
    ]
    return pl.concat(parts) if parts else pl.DataFrame()


def _gate_panels(gates: pl.DataFrame) -> alt.FacetChart:
    layers = sorted(gates["layer"].unique())
    models = gates["model"].unique(maintain_order=True).to_list()
    stride = math.ceil(len(layers) / 8)
    title = "Gate value (share of memory)"
    if len(gates.select("layer", "head").unique()) > _MOST_LINES:
        title = "Gate value, mean of heads (share of memory)"
        gates = gates.group_by("model", "layer", "step", maintain_order=True).agg(
            pl.lit(None).alias("head"), pl.col("value").mean()
        )
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.5, opacity=0.9)
        .encode(
            x=_STEP,
            y=alt.Y("value:Q", title=title).scale(zero=False),
            color=alt.Color("layer:O", title="Gate of layer")
            .scale(scheme=alt.SchemeParams("viridis", extent=[0, 0.9]))
            .legend(values=layers[::stride]),
            detail="head:N",
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("layer:O", title="Layer"),
                alt.Tooltip("head:O", title="Head"),
                alt.Tooltip("step:Q", title="Step", format=","),
                alt.Tooltip("value:Q", title="Gate", format=".3f"),
            ],
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    facet = alt.Facet("model:N", title=None, sort=models)
    return lines.facet(data=inline(gates), facet=facet, columns=2, spacing=40).resolve_axis(
        x="independent", y="independent"
    )
