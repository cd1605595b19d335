"""Training speed and memory, rendered to SVG: their texts and marks."""

import polars as pl
import pytest

from needlework.figures.training_cost import training_cost


def test_speed_and_memory_have_readable_units(drawn):
    measured = {
        name: pl.DataFrame(
            {
                "step": [1, 10, 20],
                "tokens_per_second": [500.0 * k, 2000.0 * k, 1900.0 * k],
                "peak_memory_bytes": [2**28 * k, 2**29 * k, 2**29 * k],
            }
        )
        for name, k in (("dense", 1), ("gates own", 3))
    }
    texts, marks = drawn(training_cost(measured.values(), list(measured)))
    assert {"Tokens per second (log scale)", "Peak memory (log scale)", "Step", "Model"} <= set(
        texts
    )
    assert {"256 MiB", "2 GiB", "1k", "dense", "gates own"} <= set(texts)
    assert len([mark for mark in marks if mark["kind"] == "line mark"]) == 4
    with pytest.raises(
        ValueError, match="training measurements of old: column 'peak_memory_bytes' is missing"
    ):
        training_cost([measured["dense"].drop("peak_memory_bytes")], ["old"])
