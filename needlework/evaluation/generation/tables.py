"""Tables of generated answers from their entries in the store."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from needlework.attention.density import Density, LayerDensity
from needlework.evaluation.answer_store import Entry
from needlework.evaluation.answer_tables import CELL, MEASUREMENTS, PREDICTIONS, Columns

_DENSITIES: Columns = {
    **CELL,
    "layer": pl.Int64,
    "stage": pl.String,
    "is_sparse": pl.Boolean,
    "density": pl.Float64,
    "pairs": pl.Int64,
}


class AnswerTables(NamedTuple):
    """Tables of one system's answers; see `generate_answers`."""

    predictions: pl.DataFrame
    measurements: pl.DataFrame
    densities: pl.DataFrame


def answer_tables(system: str, answers: Iterable[tuple[dict[str, Any], Entry]]) -> AnswerTables:
    """Tables of the entries of samples, in their order.

    Args:
        system: name of the system.
        answers: rows with task, length and sample, each with its entry.
    """
    predictions, measurements = [], []
    layers: dict[tuple[str, int], list[LayerDensity]] = {}
    for row, entry in answers:
        sample = {"system": system, **{name: row[name] for name in ("task", "length", "sample")}}
        predictions.append({**sample, **entry["answer"]})
        measurements.append({**sample, **entry["measured"]})
        layers.setdefault((row["task"], row["length"]), []).extend(
            LayerDensity(*layer) for layer in entry["layers"]
        )
    return AnswerTables(
        pl.DataFrame(predictions, schema=PREDICTIONS),
        pl.DataFrame(measurements, schema=MEASUREMENTS),
        pl.DataFrame(
            [
                (system, *cell, one.layer, one.stage, one.is_sparse, one.density, one.pairs)
                for cell, measured_layers in layers.items()
                for one in Density.of(measured_layers).layers
            ],
            schema=_DENSITIES,
            orient="row",
        ),
    )
