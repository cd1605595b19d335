"""Training curves: loss, learning rate, and the gates of Infini-attention."""

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.step_curves import (
    GATE,
    HEIGHT,
    STEP,
    WIDTH,
    curve,
    log_curve,
    require_all,
    stack,
)
from needlework.figures.style.theme import inline, panel_facet, styled

_MAX_LINES = 32


def training(metrics: Sequence[pl.DataFrame], models: Sequence[str]) -> alt.Chart:
    """Loss and learning rate against step, all models; below, the gates of each model with gates.

    Args:
        metrics: tables of step, loss, learning_rate; validation_loss (null between validations);
            gate_layer{l}_head{h} for each Infini gate.
        models: the name of each table's model, or of its distilled gates.

    Raises:
        ValueError: if there is no model, or a table has no rows.
    """
    require_all(metrics, models, ["step", "loss", "learning_rate"], "training metrics")
    curves = stack(metrics, models)
    rate = alt.Y("learning_rate:Q", title="Learning rate").axis(format=".2~g", tickCount=6)
    panels = [
        alt.hconcat(
            log_curve(curves, "loss", "Loss (nats, log scale)", models),
            curve(curves, "learning_rate", "Learning rate", rate, models),
            spacing=40,
        )
    ]
    if "validation_loss" in curves.columns:
        title = "Loss on held-out text (nats per token, log scale)"
        panels.append(log_curve(curves, "validation_loss", title, models, point=True))
    gates = _gates(metrics, models)
    if len(gates):
        panels.append(_gate_panels(gates))
    steps = ", ".join(
        f"{max(table['step']):,} ({model})" for model, table in zip(models, metrics, strict=True)
    )
    return styled(
        alt.vconcat(*panels, spacing=36).resolve_scale(
            color="independent", strokeDash="independent"
        ),
        "Training",
        [
            "Loss: mean over trained tokens; for distilled gates, 10 KL summed over layers",
            f"n = {steps} steps",
        ],
    )


def _gates(metrics: Sequence[pl.DataFrame], models: Sequence[str]) -> pl.DataFrame:
    parts = [
        table.select("step", pl.col(GATE).cast(pl.Float64))
        .unpivot(index="step", variable_name="gate", value_name="value")
        .select(
            pl.lit(model).alias("model"),
            pl.col("step").cast(pl.Int64),
            pl.col("gate").str.extract(GATE, 1).cast(pl.Int64).alias("layer"),
            pl.col("gate").str.extract(GATE, 2).cast(pl.Int64).alias("head"),
            "value",
        )
        for model, table in zip(models, metrics, strict=True)
        if any(column.startswith("gate_layer") for column in table.columns)
    ]
    return pl.concat(parts) if parts else pl.DataFrame()


def _gate_panels(gates: pl.DataFrame) -> alt.FacetChart:
    layers = sorted(gates["layer"].unique())
    models = gates["model"].unique(maintain_order=True).to_list()
    stride = math.ceil(len(layers) / 8)
    title = "Gate value (share of memory)"
    if len(gates.select("layer", "head").unique()) > _MAX_LINES:
        title = "Gate value, mean of heads (share of memory)"
        gates = gates.group_by("model", "layer", "step", maintain_order=True).agg(
            pl.lit(None).alias("head"), pl.col("value").mean()
        )
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.5, opacity=0.9)
        .encode(
            x=STEP,
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
        .properties(width=WIDTH, height=HEIGHT)
    )
    facet = panel_facet("model", models, WIDTH)
    return lines.facet(data=inline(gates), facet=facet, columns=2, spacing=40).resolve_axis(
        x="independent", y="independent"
    )
