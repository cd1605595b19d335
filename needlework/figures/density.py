"""Measured density by layer, of every system that is put on a model."""

import altair as alt
import polars as pl

from needlework.figures.style.theme import inline, names, styled
from needlework.tables.columns import require

_STAGES = ["prefill", "decode"]
_NUMBER = "format(datum.percent, datum.percent < 9.95 ? '.1f' : '.0f')"
_COLUMNS = ["system", "task", "length", "layer", "stage", "density", "pairs"]


def density(densities: pl.DataFrame, unit: str = "tokens") -> alt.Chart:
    """Kept / causal pairs (%) of each layer, a line of cells a system; prefill and decode apart.

    Tasks are pooled: a cell is the pairs kept of all causal pairs at a length. One row of panels a
    length. A layer that no system replaces is not there.

    Args:
        densities: system, task, length, layer (from 0), stage (prefill, decode), density (0-1),
            pairs (causal, the weight of the row).
        unit: of the lengths.

    Raises:
        ValueError: if nothing was measured.
    """
    require(densities, _COLUMNS, "densities")
    systems = names(densities, "system")
    stages = [stage for stage in _STAGES if stage in densities["stage"]]
    layers, lengths = sorted(densities["layer"].unique()), sorted(densities["length"].unique())
    panels = {
        (length, stage): f"{length:,} {unit}, {stage}" for length in lengths for stage in stages
    }
    cells = (
        densities.group_by("system", "length", "stage", "layer", maintain_order=True)
        .agg(
            percent=100 * (pl.col("density") * pl.col("pairs")).sum() / pl.col("pairs").sum(),
            pairs=pl.col("pairs").sum(),
        )
        .with_columns(
            panel=pl.struct("length", "stage").map_elements(
                lambda cell: panels[cell["length"], cell["stage"]], return_dtype=pl.String
            )
        )
    )
    step_x = min(max(440 / len(layers), 13), 60)
    shown = layers if step_x >= 22 else layers[:: 4 if step_x < 16 else 2]
    base = alt.Chart().encode(
        x=alt.X("layer:O", title="Layer", sort=layers).axis(
            values=shown, labelAngle=0, labelOverlap=False, ticks=False, domain=False
        ),
        y=alt.Y("system:N", title=None, sort=systems).axis(
            labelLimit=320, labelOverlap=False, ticks=False, domain=False
        ),
        tooltip=[
            alt.Tooltip("system:N", title="System"),
            alt.Tooltip("length:Q", title=f"Length ({unit})", format=","),
            alt.Tooltip("stage:N", title="Stage"),
            alt.Tooltip("layer:Q", title="Layer"),
            alt.Tooltip("percent:Q", title="Density (%)", format=".2f"),
            alt.Tooltip("pairs:Q", title="Causal pairs", format=","),
        ],
    )
    # A root spreads the small densities that sparse systems are about.
    squares = base.mark_rect(stroke="white", strokeWidth=0.5).encode(
        color=alt.Color("percent:Q", title="Density (%)")
        .scale(type="sqrt", scheme="blues", domain=[0, 100])
        .legend(gradientLength=180, values=[0, 5, 20, 50, 100])
    )
    marks = [squares]
    if step_x >= 30:
        marks.append(
            base.transform_calculate(text=_NUMBER)
            .mark_text(fontSize=11)
            .encode(
                text="text:N",
                color=alt.condition("datum.percent < 40", alt.value("black"), alt.value("white")),
            )
        )
    chart = (
        alt.layer(*marks)
        .properties(
            width=alt.Step(step_x), height=alt.Step(20), view=alt.ViewBackground(fill="#cccccc")
        )
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
            "Pairs of query and key attended to, in % of the causal pairs; all tasks together",
            "Grey: the layer keeps the model's own attention in this system",
        ],
    )
