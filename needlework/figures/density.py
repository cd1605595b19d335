"""Measured density by layer, of every sparse system."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.theme import distinct, inline, name_axis, name_step, styled
from needlework.tables.columns import concat, require

_STAGES = ["prefill", "decode"]
_NUMBER = "format(datum.percent, datum.percent < 9.95 ? '.1f' : '.0f')"
_DENSE = "#cccccc"
_COLUMNS = ["system", "task", "length", "layer", "stage", "is_sparse", "density", "pairs"]


def density(densities: Sequence[pl.DataFrame], length_unit: str = "tokens") -> alt.Chart:
    """Kept / causal pairs (%) of each layer: one row of cells per system.

    One row of panels per length, prefill and decode in separate panels. Tasks are pooled: a cell is
    all pairs kept over all causal pairs. Dense layers are grey.

    Args:
        densities: tables of system, task, length, layer (from 0), stage (prefill, decode),
            is_sparse (false: the layer keeps the model's own attention), density (0-1), pairs
            (causal, the weight of the row).
        length_unit: unit of the lengths.

    Raises:
        ValueError: if nothing was measured.
    """
    table = concat(densities)
    require(table, _COLUMNS, "densities")
    systems = distinct(table, "system")
    stages = [stage for stage in _STAGES if stage in table["stage"]]
    layers, lengths = sorted(table["layer"].unique()), sorted(table["length"].unique())
    panels = {
        (length, stage): f"{length:,} {length_unit}, {stage}"
        for length in lengths
        for stage in stages
    }
    cells = (
        table.group_by("system", "length", "stage", "layer", "is_sparse", maintain_order=True)
        .agg(
            percent=100 * (pl.col("density") * pl.col("pairs")).sum() / pl.col("pairs").sum(),
            pairs=pl.col("pairs").sum(),
        )
        .with_columns(
            panel=pl.struct("length", "stage").map_elements(
                lambda cell: panels[cell["length"], cell["stage"]], return_dtype=pl.String
            ),
            kind=pl.when("is_sparse").then(pl.lit("sparse")).otherwise(pl.lit("dense")),
        )
    )
    step_x = min(max(440 / len(layers), 13), 60)
    labelled = layers if step_x >= 22 else layers[:: 4 if step_x < 16 else 2]
    base = alt.Chart().encode(
        x=alt.X("layer:O", title="Layer", sort=layers).axis(
            values=labelled, labelAngle=0, labelOverlap=False, ticks=False, domain=False
        ),
        y=alt.Y(
            "system:N", title=None, sort=systems, axis=name_axis(systems, ticks=False, domain=False)
        ),
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("length:Q", title=f"Length ({length_unit})", format=","),
            alt.Tooltip("stage:N", title="Stage"),
            alt.Tooltip("layer:Q", title="Layer"),
            alt.Tooltip("kind:N", title="Attention"),
            alt.Tooltip("percent:Q", title="Density (%)", format=".2f"),
            alt.Tooltip("pairs:Q", title="Causal pairs", format=","),
        ],
    )
    # A square-root scale separates the small densities of sparse systems.
    squares = base.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.when("datum.is_sparse")
        .then(
            alt.Color("percent:Q", title="Density (%)")
            .scale(type="sqrt", scheme="blues", domain=[0, 100])
            .legend(gradientLength=180, values=[0, 5, 20, 50, 100])
        )
        .otherwise(alt.value(_DENSE))
    )
    marks = [squares]
    if step_x >= 30:
        marks.append(
            base.transform_calculate(text=_NUMBER)
            .mark_text(fontSize=11)
            .encode(
                text="text:N",
                color=alt.when("datum.percent < 40 || !datum.is_sparse")
                .then(alt.value("black"))
                .otherwise(alt.value("white")),
            )
        )
    chart = (
        alt.layer(*marks)
        .properties(width=alt.Step(step_x), height=alt.Step(name_step(systems, 20)))
        .facet(
            data=inline(cells),
            facet=alt.Facet("panel:N", title=None, sort=list(panels.values())),
            columns=len(stages),
        )
        .resolve_axis(x="independent")
    )
    return styled(
        chart,
        "Density by layer",
        [
            "(query, key) pairs attended to, in % of the causal pairs; all tasks pooled",
            "Grey: dense layers, which keep the model's own attention (100 %)",
        ],
    )
