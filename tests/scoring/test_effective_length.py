"""Mean scores over tasks, and effective lengths."""

import numpy as np
import polars as pl
import pytest

from needlework.scoring.effective_length import effective_lengths, mean_scores
from needlework.scoring.intervals import wilson

LENGTHS = [1024, 2048, 4096, 8192]


def _row(system, task, length, right, n=20, metric="all", depth=None, skip_reason=None):
    low, high = (None, None) if skip_reason else map(float, wilson(right / n, n))
    return {
        "system": system, "task": task, "length": length, "depth_percent": depth,
        "metric": None if skip_reason else metric, "n": 0 if skip_reason else n,
        "accuracy": None if skip_reason else right / n, "ci_low": low, "ci_high": high,
        "skip_reason": skip_reason,
    }  # fmt: skip


def _table(rows):
    return pl.DataFrame(
        rows, schema_overrides={"depth_percent": pl.Float64, "skip_reason": pl.String}
    )


def _means(**scores):
    """Systems with these scores at LENGTHS, each with an interval of +- 0.05."""
    return pl.DataFrame(
        [
            {"system": system, "length": length, "tasks": 1, "n": 9, "score": score,
             "ci_low": None if score is None else score - 0.05,
             "ci_high": None if score is None else score + 0.05}
            for system, row in scores.items() for length, score in zip(LENGTHS, row, strict=True)
        ]
    )  # fmt: skip


def _intervals(means, criterion, score=0.856, share=0.85):
    table = effective_lengths(means, score, share).filter(pl.col("criterion") == criterion)
    return {
        row["system"]: (row["ci_low"], row["effective_length"], row["ci_high"])
        for row in table.to_dicts()
    }


def test_a_score_is_the_mean_of_tasks_each_in_its_metric():
    rows = [
        _row("b", "niah", 1024, 20), _row("b", "niah", 1024, 3, metric="exact"),
        _row("b", "niah", 1024, 1, depth=50.0),
        _row("b", "qa", 1024, 5, metric="part"), _row("b", "qa", 1024, 1),
        _row("b", "vt", 1024, 9, n=30),
        _row("a", "niah", 1024, 0), _row("a", "qa", 1024, 10, metric="part"),
        _row("a", "vt", 1024, 30, n=30),
    ]  # fmt: skip
    means = mean_scores(_table(rows), {"qa": "part"})
    assert means["system"].to_list() == ["b", "a"]
    for row, shares in zip(
        means.to_dicts(), ([(20, 20), (5, 20), (9, 30)], [(0, 20), (10, 20), (30, 30)]), strict=True
    ):
        score = sum(right / n for right, n in shares) / 3
        low, high = wilson(score, 60)  # 20 of each
        assert row["tasks"] == 3
        assert row["n"] == 70
        assert row["score"] == pytest.approx(score)
        assert row["ci_low"] == pytest.approx(float(low))
        assert row["ci_high"] == pytest.approx(float(high))


def test_the_interval_of_one_task_is_its_wilson_interval():
    (row,) = mean_scores(_table([_row("a", "niah", 1024, 17)])).to_dicts()
    low, high = wilson(17 / 20, 20)
    assert (row["ci_low"], row["ci_high"]) == (
        pytest.approx(float(low)),
        pytest.approx(float(high)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truths", "n"),
    [
        ([0.99] * 13, 22),  # most tasks have no error
        ([0.95] * 5, 22),
        ([0.856] * 13, 10),
        ([0.99] * 10 + [0.41] * 3, 22),
        ([0.95, 0.7, 0.3], 20),
        ([0.5, 0.99], [20, 500]),
    ],
)
def test_intervals_cover_the_mean_about_as_often_as_they_claim(truths, n):
    truths, draws = np.array(truths), np.random.default_rng(0)
    n = np.broadcast_to(n, truths.shape)
    rows = [
        _row("a", f"t{i}", draw, int(right), int(n[i]))
        for draw in range(1000)
        for i, right in enumerate(draws.binomial(n, truths))
    ]
    means = mean_scores(_table(rows))
    assert means["score"].mean() == pytest.approx(truths.mean(), abs=0.01)
    assert means.select(pl.lit(truths.mean()).is_between("ci_low", "ci_high").mean()).item() >= 0.91


def test_a_length_with_a_skipped_task_has_no_score():
    rows = [_row("a", task, length, 20) for task in ("niah", "vt") for length in (1024, 2048)]
    rows += [_row("a", "niah", 4096, 20), _row("a", "vt", 4096, 0, skip_reason="out of memory: no")]
    means = mean_scores(_table(rows))
    assert means["score"].to_list() == [1.0, 1.0, None]
    assert means["ci_low"].is_null().to_list() == [False, False, True]
    (row,) = effective_lengths(means, 0.5, 0.85).filter(criterion="score").to_dicts()
    assert (row["effective_length"], row["longest_length"]) == (2048, 4096)


def test_criterion_score():
    means = _means(
        far=[1.0, 0.95, 0.92, 0.9],
        near=[0.92, 0.87, 0.82, 0.5],
        none=[0.4, 0.3, 0.2, 0.0],
        recovering=[0.95, 0.3, 0.95, 0.3],
        exact=[0.856, 0.2, 0.2, 0.2],
    )
    assert _intervals(means, "score") == {
        "far": (4096, 8192, 8192),
        "near": (1024, 2048, 4096),
        "none": (None, None, None),
        "recovering": (4096, 4096, 4096),
        "exact": (None, 1024, 1024),
    }


def test_criterion_share():
    means = _means(
        weak=[0.4, 0.36, 0.34, 0.1],  # the threshold is 0.34
        # 0.85 of 0.8 is 0.68; arms of 0.05 and 0.85 x 0.05 combine to 0.066.
        near=[0.8, 0.75, 0.7, 0.62],
        barely=[0.8, 0.74, 0.5, 0.5],  # 0.06 above 0.68: within the combined arm, beyond its own
        zero=[0.0, 0.0, 0.0, 0.0],
        late=[None, 0.9, 0.9, 0.9],
    )
    assert _intervals(means, "share") == {
        "weak": (1024, 4096, 4096),
        "near": (2048, 4096, 8192),
        "barely": (1024, 2048, 2048),
        "zero": (None, None, None),
        "late": (None, None, None),
    }
    table = effective_lengths(means, 0.856, 0.85).filter(criterion="share")
    assert table["threshold"].round(6).to_list() == [0.34, 0.68, 0.68, None, None]
    assert table["reference_length"].to_list() == [1024] * 5
