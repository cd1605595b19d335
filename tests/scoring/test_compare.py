"""Comparison of systems with a baseline: accuracy, and speed."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from needlework.scoring.compare import compare, compare_speed, sign_test
from needlework.scoring.intervals import paired_difference
from needlework.scoring.metrics import METRICS


def table(**systems):
    """Scores of samples 0.. of one task and length, one list per system."""
    return pl.concat(
        pl.DataFrame(
            {
                "system": [system] * len(scores),
                "task": ["qa"] * len(scores),
                "length": [1024] * len(scores),
                "sample": list(range(len(scores))),
                "all": [score / 2 for score in scores],
                "part": scores,
                "exact": scores,
                "rouge_l": [None] * len(scores),
                "token_f1": scores,
                "cache_bytes": [1000.0 if system == "dense" else 250.0] * len(scores),
            },
            schema_overrides=dict.fromkeys(METRICS, pl.Float64),
        )
        for system, scores in systems.items()
    )


@pytest.mark.parametrize(
    "differences", [[1, 1, 1, 1, 1, -1], [1, 0, 0], [0, 0], [0.5, 0.25, -1, 1, 0, 1, 1], [-1] * 8]
)
def test_sign_test_equals_an_enumeration_of_signs(differences):
    """Gains and losses are equally likely: count outcomes at least as lopsided as this one."""
    signs = [np.sign(difference) for difference in differences if difference]
    outcomes = [abs(sum(flips)) for flips in itertools.product((1, -1), repeat=len(signs))]
    expected = np.mean([outcome >= abs(sum(signs)) for outcome in outcomes])
    assert sign_test(np.array(differences, dtype=float)) == pytest.approx(expected, abs=1e-12)


def test_compare_pairs_the_same_samples():
    dense, sparse = [1, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 0]
    scores = table(dense=dense, sparse=sparse)
    rows, markdown = compare(scores.sample(fraction=1, shuffle=True, seed=1), scores, "dense")
    low, high = paired_difference(np.array(sparse) / 2, np.array(dense) / 2)
    assert rows == [
        {
            "baseline": "dense",
            "system": "sparse",
            "task": "qa",
            "length": 1024,
            "metric": "all",
            "n": 6,
            "accuracy": pytest.approx(1 / 6),
            "accuracy_baseline": pytest.approx(5 / 12),
            "difference": pytest.approx(-0.25),
            "ci_low": low,
            "ci_high": high,
            "p_value": pytest.approx(2 * (1 + 5) / 2**5),  # 1 gain, 4 losses
            "memory_ratio": 0.25,
            "answered": 6,
            "answered_baseline": 6,
            "accuracy_answered": pytest.approx(1 / 6),
            "accuracy_answered_baseline": pytest.approx(5 / 12),
        }
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert "| sparse | qa | 1,024 | all | 6 | 16.7 / 41.7 | -25.0 |" in markdown
    assert "| 0.375 | 0.25 x | 6 / 6 |" in markdown


def test_unanswered_prompts_are_wrong_and_counted():
    """Of four samples the API answers two; the first is right in both systems."""
    scores = table(dense=[1, 0, 1, 1], api=[1, 1, 0, 0])
    status = [None] * 4 + ["ok", "ok", "error", "refused"]
    predictions = scores.with_columns(status=pl.Series(status))
    (row,), markdown = compare(scores, predictions, "dense", {"qa": "part"})
    assert (row["accuracy"], row["accuracy_baseline"], row["n"]) == (0.5, 0.75, 4)
    assert (row["answered"], row["answered_baseline"]) == (2, 4)
    assert (row["accuracy_answered"], row["accuracy_answered_baseline"]) == (1.0, 0.5)
    assert "| 2 / 4 |" in markdown
    none = predictions.with_columns(
        status=pl.when(pl.col("system") == "api").then(pl.lit("error")).otherwise("status")
    )
    (row,), _ = compare(scores, none, "dense", {"qa": "part"})
    assert (row["answered"], row["accuracy_answered"]) == (0, None)


def test_each_task_has_its_metric():
    scores = table(dense=[1, 1], sparse=[0, 1])
    (row,), _ = compare(scores, scores, "dense", {"qa": "part", "vt": "all"})
    assert (row["metric"], row["difference"]) == ("part", -0.5)
    with pytest.raises(ValueError, match=r"^metric 'rouge': must be one of all, part, exact"):
        compare(scores, scores, "dense", {"qa": "rouge"})
    with pytest.raises(
        ValueError, match=r"^metric rouge_l: task qa has no scores in it; write all"
    ):
        compare(scores, scores, "dense", {"qa": "rouge_l"})


def test_part_counts_wins_and_losses():
    """The difference and McNemar's exact p of the 2 x 2 table, counted by hand."""
    dense, sparse = [1, 1, 1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1, 0, 0]  # 5 lost, 1 won
    scores = table(dense=dense, sparse=sparse)
    (row,), markdown = compare(scores, scores, "dense", {"qa": "part"})
    assert row["metric"] == "part"
    assert row["difference"] == (1 - 5) / 8
    assert row["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert (row["ci_low"], row["ci_high"]) == paired_difference(sparse, dense)
    assert "| sparse | qa | 1,024 | part | 8 | 25.0 / 75.0 | -50.0 |" in markdown


def test_missing_baselines_pairs_and_measurements():
    scores = table(dense=[1, 1], sparse=[0, 1])
    with pytest.raises(ValueError, match=r"^baseline 'full': not in the scores; choose one of"):
        compare(scores, scores, "full")
    uneven = table(dense=[1, 1], sparse=[0])
    with pytest.raises(
        ValueError, match=r"^scores of dense: .*sample 1 has no partner in the scor"
    ):
        compare(uneven, uneven, "dense")
    single = table(dense=[1, 1])
    rows, markdown = compare(single, single, "dense")
    assert rows == []
    assert markdown.endswith("---: |\n")
    unmeasured = scores.with_columns(cache_bytes=pl.lit(None, dtype=pl.Float64))
    (row,), markdown = compare(scores, unmeasured, "dense")
    assert row["memory_ratio"] is None
    assert "| - |" in markdown


def measured(decode=(2.0, 4.0, 8.0, 1.0), **prefill):
    """Measurements and predictions of one task and length, prefill seconds of each system."""
    keys = {"task": ["vt"] * 4, "length": [512] * 4, "sample": [0, 1, 2, 3]}
    return (
        pl.concat(
            pl.DataFrame(
                {"system": [system] * 4, **keys}
                | {"prefill_seconds": values, "decode_seconds": decode}
                | {"peak_memory_bytes": [100, 200, 300, 400 if system == "dense" else 200]},
                schema_overrides={"prefill_seconds": pl.Float64, "decode_seconds": pl.Float64},
            )
            for system, values in prefill.items()
        ),
        pl.concat(
            pl.DataFrame({"system": [system] * 4, **keys, "new_tokens": [5, 5, 5, 1]})
            for system in prefill
        ),
    )


def test_speed_is_the_median_of_paired_ratios():
    tables = measured(dense=[1.0, 2.0, 9.0, 4.0], sparse=[0.5, 0.5, 4.5, 4.0])
    rows, markdown = compare_speed(*tables, "dense")
    ratios = [2.0, 4.0, 2.0, 1.0]
    # Four tokens after the first; an answer of one token has no speed.
    per_second = np.median([4 / 2, 4 / 4, 4 / 8])
    assert rows == [
        {
            "baseline": "dense",
            "system": "sparse",
            "task": "vt",
            "length": 512,
            "n": 4,
            "speedup": np.median(ratios),
            "speedup_low": np.quantile(ratios, 0.25),
            "speedup_high": np.quantile(ratios, 0.75),
            "peak_memory_ratio": 0.75,
            "latency_seconds": np.median([2.5, 4.5, 12.5, 5]),
            "latency_seconds_baseline": np.median([3, 6, 17, 5]),
            "first_token_seconds": np.median([0.5, 0.5, 4.5, 4]),
            "first_token_seconds_baseline": np.median([1, 2, 9, 4]),
            "tokens_per_second": per_second,
            "tokens_per_second_baseline": per_second,
            "peak_memory_bytes": 300,
            "peak_memory_bytes_baseline": 400,
            "price_dollars": None,
            "price_dollars_baseline": None,
            "measured_at": None,
            "measured_at_baseline": None,
            "device": None,
            "device_baseline": None,
        }
    ]
    assert "Not measured" not in markdown
    assert "| sparse | vt | 512 | 4 | 2 x | 1.75 x to 2.5 x | 4.75 s / 5.5 s |" in markdown
    assert "Price |" not in markdown


@pytest.mark.parametrize(
    ("changed", "is_apart"),
    [
        ({}, False),
        ({"measured_at": "2026-03-01T23:59:59Z"}, False),
        ({"measured_at": "2026-03-02T00:00:00Z"}, True),
        ({"device": "NVIDIA RTX 4090"}, True),
        ({"device": None}, False),
    ],
)
def test_systems_measured_on_another_day_or_device_are_named(changed, is_apart):
    measurements, predictions = measured(dense=[1.0] * 4, sparse=[0.5] * 4)
    conditions = {"measured_at": "2026-03-01T10:00:00Z", "device": "NVIDIA RTX 3090"}
    measurements = pl.concat(
        table.with_columns(**{name: pl.lit(value, pl.String) for name, value in seen.items()})
        for (_, table), seen in zip(
            measurements.group_by("system", maintain_order=True),
            (conditions, conditions | changed),
            strict=True,
        )
    )
    (row,), markdown = compare_speed(measurements, predictions, "dense")
    assert {name: row[name] for name in conditions} == conditions | changed
    assert {name: row[f"{name}_baseline"] for name in conditions} == conditions
    note = "Not measured on the same day and device as dense: sparse."
    assert (note in markdown) == is_apart


def test_speed_of_an_api_that_failed_once():
    measurements, predictions = measured(
        dense=[1.0, 2.0, 9.0, 4.0], api=[0.5, 0.5, None, 4.0], decode=(2.0, 4.0, None, 1.0)
    )
    api = pl.col("system") == "api"
    measurements = measurements.with_columns(
        peak_memory_bytes=pl.when(~api).then("peak_memory_bytes"),
        price_dollars=pl.when(api & pl.col("prefill_seconds").is_not_null()).then(0.25),
    )
    (row,), markdown = compare_speed(measurements, predictions, "dense")
    assert row["speedup"] == np.median([2, 4, 1])
    assert row["latency_seconds"] == np.median([2.5, 4.5, 5])
    assert (row["peak_memory_bytes"], row["peak_memory_ratio"]) == (None, None)
    assert (row["price_dollars"], row["price_dollars_baseline"]) == (0.75, None)
    assert markdown.endswith("| - / 4e-07 GB | $0.75 / - |\n")
    nothing = measurements.with_columns(prefill_seconds=pl.when(~api).then("prefill_seconds"))
    (row,), _ = compare_speed(nothing, predictions, "dense")
    assert (row["speedup"], row["latency_seconds"]) == (None, None)
