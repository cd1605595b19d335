import itertools
import json

import numpy as np
import polars as pl
import pytest

from needlework.scoring.compare import compare, compare_speed, sign_test
from needlework.scoring.intervals import paired_difference
from needlework.scoring.metrics import METRICS


def table(**systems):
    """Scores of samples 0.. of one task and length, a list a system."""
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
def test_sign_test_is_an_enumeration_of_signs(differences):
    """Each difference is as likely a gain as a loss: count outcomes as lopsided as the one seen."""
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
            "difference": pytest.approx(-0.25),
            "low": low,
            "high": high,
            "p_value": pytest.approx(2 * (1 + 5) / 2**5),  # 1 gain, 4 losses
            "memory_ratio": 0.25,
        }
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert "| sparse | qa | 1,024 | all | 6 | -25.0 |" in markdown
    assert "| 0.375 | 0.25 x |" in markdown


def test_the_metric_is_the_tasks_own():
    scores = table(dense=[1, 1], sparse=[0, 1])
    (row,), _ = compare(scores, scores, "dense", {"qa": "part", "vt": "all"})
    assert (row["metric"], row["difference"]) == ("part", -0.5)
    with pytest.raises(ValueError, match=r"^metric 'rouge': must be one of all, part, exact"):
        compare(scores, scores, "dense", {"qa": "rouge"})
    with pytest.raises(ValueError, match=r"^metric rouge_l: task qa has none; write all, part or"):
        compare(scores, scores, "dense", {"qa": "rouge_l"})


def test_part_counts_samples_that_were_won_and_lost():
    """The difference and McNemar's exact p of the 2 x 2 table, counted by hand."""
    dense, sparse = [1, 1, 1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1, 0, 0]  # 5 lost, 1 won
    scores = table(dense=dense, sparse=sparse)
    (row,), markdown = compare(scores, scores, "dense", {"qa": "part"})
    assert row["metric"] == "part"
    assert row["difference"] == (1 - 5) / 8
    assert row["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert (row["low"], row["high"]) == paired_difference(sparse, dense)
    assert "| sparse | qa | 1,024 | part | 8 | -50.0 |" in markdown


def test_what_cannot_be_compared():
    scores = table(dense=[1, 1], sparse=[0, 1])
    with pytest.raises(ValueError, match=r"^baseline 'full': not in the scores, which hold"):
        compare(scores, scores, "full")
    uneven = table(dense=[1, 1], sparse=[0])
    with pytest.raises(
        ValueError, match=r"^scores of dense: .*sample 1 has no partner in the scor"
    ):
        compare(uneven, uneven, "dense")
    alone = table(dense=[1, 1])
    rows, markdown = compare(alone, alone, "dense")
    assert rows == []
    assert markdown.endswith("---: |\n")
    unmeasured = scores.with_columns(cache_bytes=pl.lit(None, dtype=pl.Float64))
    (row,), markdown = compare(scores, unmeasured, "dense")
    assert row["memory_ratio"] is None
    assert "| - |" in markdown


def test_speed_is_the_median_of_paired_ratios():
    seconds = {"dense": [1.0, 2.0, 9.0, 4.0], "sparse": [0.5, 0.5, 4.5, 4.0]}
    measurements = pl.concat(
        pl.DataFrame(
            {
                "system": [system] * 4,
                "task": ["vt"] * 4,
                "length": [512] * 4,
                "sample": [0, 1, 2, 3],
                "prefill_seconds": values,
                "peak_memory_bytes": [100, 200, 300, 400 if system == "dense" else 200],
            }
        )
        for system, values in seconds.items()
    )
    rows, markdown = compare_speed(measurements, "dense")
    ratios = [2.0, 4.0, 2.0, 1.0]
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
        }
    ]
    assert "| sparse | vt | 512 | 4 | 2 x | 1.75 x to 2.5 x | 0.75 x |" in markdown
