"""Training speed and peak memory against the optimizer step."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from needlework.figures.style.axes import BYTES_LABEL
from needlework.figures.style.step_curves import log_curve, require_all, stack
from needlework.figures.style.theme import styled


def training_cost(measurements: Sequence[pl.DataFrame], models: Sequence[str]) -> alt.Chart:
    """Tokens per second and peak memory so far against step, all models.

    Measured times and memory differ from run to run, and so does the figure.

    Args:
        measurements: tables of step, tokens_per_second, peak_memory_bytes.
        models: the name of each table's model, or of its distilled gates.

    Raises:
        ValueError: if there is no model, or a table has no rows.
    """
    columns = ["step", "tokens_per_second", "peak_memory_bytes"]
    require_all(measurements, models, columns, "training measurements")
    curves = stack(measurements, models)
    return styled(
        alt.hconcat(
            log_curve(
                curves, "tokens_per_second", "Tokens per second (log scale)", models, format="~s"
            ),
            log_curve(
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
        [
            "Measured, so different from run to run",
            "Memory: the peak so far of the main process",
        ],
    )
