import random

import polars as pl
import pytest

from needlework.scoring.intervals import wilson
from needlework.scoring.summarize import summarize

DEPTHS = [0.0, 50.0, 100.0]


def tables(systems=("zebra", "ant"), tasks=("vt", "cwe"), lengths=(4096, 512), per_depth=2):
    """Scores and predictions of tasks whose second has no needles."""
    draw = random.Random(3)
    scores, predictions = [], []
    for system in systems:
        for task in tasks:
            for length in lengths:
                for sample in range(per_depth * len(DEPTHS)):
                    key = {"system": system, "task": task, "length": length, "sample": sample}
                    depth = DEPTHS[sample % 3] if task == tasks[0] else None
                    part = draw.choice([0, 1 / 3, 2 / 3, 1])
                    scores.append(
                        {**key, "depth_percent": depth}
                        | {"all": part, "part": float(part > 0), "exact": float(part == 1)}
                    )
                    density = 1.0 if system == "ant" else draw.random()
                    predictions.append(
                        {**key, "prediction": "x", "prefill_density": density}
                        | {"decode_density": None, "cache_bytes": length * 100 + sample}
                    )
    overrides = {"depth_percent": pl.Float64, "decode_density": pl.Float64}
    return (
        pl.DataFrame(scores, schema_overrides=overrides, infer_schema_length=None),
        pl.DataFrame(predictions, schema_overrides=overrides, infer_schema_length=None),
    )


def test_every_cell_equals_a_loop_over_its_answers():
    scores, predictions = tables()
    summary = summarize(scores, predictions)
    expected = []
    for system in ("zebra", "ant"):
        for task in ("vt", "cwe"):
            for length in (512, 4096):
                for depth in [None, *(DEPTHS if task == "vt" else [])]:
                    for metric in ("all", "part", "exact"):
                        cell = [
                            (row[metric], answer["prefill_density"], answer["cache_bytes"])
                            for row, answer in zip(
                                scores.to_dicts(), predictions.to_dicts(), strict=True
                            )
                            if (row["system"], row["task"], row["length"]) == (system, task, length)
                            and depth in (None, row["depth_percent"])
                        ]
                        n = len(cell)
                        mean, density, cache = (
                            sum(column) / n for column in zip(*cell, strict=True)
                        )
                        low, high = map(float, wilson(mean, n))
                        expected.append(
                            {"system": system, "task": task, "length": length}
                            | {"depth_percent": depth, "metric": metric, "n": n}
                            | {"accuracy": mean, "low": low, "high": high}
                            | {"prefill_density": density, "decode_density": None}
                            | {"cache_bytes": cache}
                        )
    assert summary.columns == list(expected[0])
    assert len(summary) == len(expected)
    for row, reference in zip(summary.to_dicts(), expected, strict=True):
        for column, value in reference.items():
            expected_value = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert row[column] == expected_value, (reference, column)


def test_the_order_of_rows_in_a_cell_changes_no_bit():
    scores, predictions = tables(per_depth=50)
    order = list(range(len(scores)))
    order.sort(key=lambda i: (scores["system"][i] == "ant", scores["task"][i] == "cwe", -i))
    shuffled = summarize(scores[order], predictions.reverse())
    assert shuffled.equals(summarize(scores, predictions))


def test_unmatched_rows_are_an_error():
    scores, predictions = tables()
    with pytest.raises(
        ValueError, match=r"^scores: system zebra, .* has no partner in the predict"
    ):
        summarize(scores, predictions.slice(1))
    with pytest.raises(ValueError, match=r"^predictions: lacks the column 'cache_bytes'"):
        summarize(scores, predictions.drop("cache_bytes"))
    with pytest.raises(ValueError, match=r"^scores: has no rows"):
        summarize(scores.clear(), predictions)
