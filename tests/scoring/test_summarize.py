"""Aggregation of scores by cell."""

import random

import polars as pl
import pytest

from needlework.scoring.intervals import wilson
from needlework.scoring.metrics import METRICS
from needlework.scoring.summarize import pool_lengths, summarize

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
                        {**key, "all": part, "part": float(part > 0), "exact": float(part == 1)}
                        | {"rouge_l": part / 2 if task == tasks[0] else None, "token_f1": None}
                        | {"needle_depths": [] if depth is None else [depth]}
                        | {"needle_found": [] if depth is None else [part > 0]}
                    )
                    density = 1.0 if system == "ant" else draw.random()
                    predictions.append(
                        {**key, "prediction": "x", "prefill_density": density}
                        | {"sparse_layers_prefill_density": density / 2, "decode_density": None}
                        | {
                            "sparse_layers_decode_density": None,
                            "cache_bytes": length * 100 + sample,
                        }
                    )
    overrides = dict.fromkeys(("decode_density", "sparse_layers_decode_density"), pl.Float64)
    needles = {"needle_depths": pl.List(pl.Float64), "needle_found": pl.List(pl.Boolean)}
    return (
        pl.DataFrame(
            scores,
            schema_overrides=needles | dict.fromkeys(METRICS, pl.Float64),
            infer_schema_length=None,
        ),
        pl.DataFrame(predictions, schema_overrides=overrides, infer_schema_length=None),
    )


def test_each_cell_equals_a_loop_over_its_answers():
    scores, predictions = tables()
    summary = summarize(scores, predictions)
    expected = []
    for system in ("zebra", "ant"):
        for task in ("vt", "cwe"):
            for length in (512, 4096):
                for depth in [None, *(DEPTHS if task == "vt" else [])]:
                    for metric in ("all", "part", "exact", *["rouge_l"] * (task == "vt")):
                        cell = [
                            (row[metric], answer["prefill_density"], answer["cache_bytes"])
                            for row, answer in zip(
                                scores.to_dicts(), predictions.to_dicts(), strict=True
                            )
                            if (row["system"], row["task"], row["length"]) == (system, task, length)
                            and depth in (None, *row["needle_depths"])
                        ]
                        n = len(cell)
                        mean, density, cache = (
                            sum(column) / n for column in zip(*cell, strict=True)
                        )
                        low, high = map(float, wilson(mean, n))
                        expected.append(
                            {"system": system, "task": task, "length": length}
                            | {"depth_percent": depth, "metric": metric, "n": n}
                            | {"accuracy": mean, "ci_low": low, "ci_high": high}
                            | {"prefill_density": density, "decode_density": None}
                            | {"sparse_layers_prefill_density": density / 2}
                            | {"sparse_layers_decode_density": None}
                            | {"cache_bytes": cache, "answered": n, "accuracy_answered": mean}
                            | {"truncated_thought": 0, "empty": 0, "skip_reason": None}
                        )
    assert summary.columns == list(expected[0])
    assert len(summary) == len(expected)
    for row, reference in zip(summary.to_dicts(), expected, strict=True):
        for column, value in reference.items():
            expected_value = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert row[column] == expected_value, (reference, column)


def test_thoughts_that_never_closed_and_empty_answers_are_counted():
    scores, predictions = tables()
    names = ["answer", "truncated_thought", "empty", "truncated_thought"]
    outcomes = [names[i % 4] for i in range(len(scores))]
    scores = scores.with_columns(outcome=pl.Series(outcomes))
    summary = summarize(scores, predictions)
    cells = summary.filter(pl.col("depth_percent").is_null(), pl.col("metric") == "all")
    assert cells["truncated_thought"].sum() == outcomes.count("truncated_thought")
    assert cells["empty"].sum() == outcomes.count("empty")


def test_the_order_of_rows_does_not_change_the_bits():
    scores, predictions = tables(per_depth=50)
    order = list(range(len(scores)))
    order.sort(key=lambda i: (scores["system"][i] == "ant", scores["task"][i] == "cwe", -i))
    shuffled = summarize(scores[order], predictions.reverse())
    assert shuffled.equals(summarize(scores, predictions))


def test_answers_are_counted_separately_from_samples():
    """Every third answer of `ant` is missing: wrong in accuracy, left out of accuracy_answered."""
    scores, predictions = tables()
    failed = (pl.col("system") == "ant") & (pl.col("sample") % 3 == 1)
    metrics = [pl.when(~failed | pl.col(m).is_null()).then(m).otherwise(0.0) for m in METRICS]
    scores = scores.with_columns(metrics)
    status = pl.when(failed).then(pl.lit("error")).when(pl.col("system") == "ant")
    summary = summarize(scores, predictions.with_columns(status=status.then(pl.lit("ok"))))
    for row in summary.rows(named=True):
        cell = scores.filter(
            *(pl.col(key) == row[key] for key in ("system", "task", "length")),
        )
        if (depth := row["depth_percent"]) is not None:
            cell = cell.filter(pl.col("needle_depths").list.first() == depth)
        answers = cell.filter(~failed)[row["metric"]]
        assert row["answered"] == len(answers)
        assert row["accuracy_answered"] == (
            pytest.approx(answers.mean()) if len(answers) else None
        ), row
        assert row["accuracy"] == pytest.approx(cell[row["metric"]].mean())
    assert (summary["answered"] == 0).any()


def with_needles(scores, needles, seed=5):
    """`scores` with this many needles per answer, at random depths; `all` is the share found."""
    draw = random.Random(seed)
    depths = [[draw.choice([0.0, 40.0, 90.0]) for _ in range(needles)] for _ in range(len(scores))]
    found = [[draw.random() < 0.5 for _ in row] for row in depths]
    return scores.with_columns(
        pl.Series("all", [sum(row) / needles for row in found]),
        pl.Series("needle_depths", depths),
        pl.Series("needle_found", found),
    )


def test_with_several_needles_n_at_a_depth_counts_needles():
    scores, predictions = tables(systems=("ant",), tasks=("vt",), lengths=(512,), per_depth=20)
    scores = with_needles(scores, 3)
    summary = summarize(scores, predictions)
    at_depths = summary.drop_nulls("depth_percent")
    assert at_depths["metric"].to_list() == ["all"] * 3
    expected = []
    for depth in (0.0, 40.0, 90.0):
        hits, densities = [], []
        for row, answer in zip(scores.to_dicts(), predictions.to_dicts(), strict=True):
            for at, found in zip(row["needle_depths"], row["needle_found"], strict=True):
                if at == depth:
                    hits.append(found)
                    densities.append(answer["prefill_density"])
        low, high = map(float, wilson(sum(hits) / len(hits), len(hits)))
        expected.append((depth, len(hits), sum(hits) / len(hits), low, high))
        assert sum(densities) / len(densities) == 1
    columns = ["depth_percent", "n", "accuracy", "ci_low", "ci_high"]
    assert at_depths.select(columns).rows() == expected
    assert sum(at_depths["n"]) == 3 * len(scores)
    together = summary.filter(pl.col("depth_percent").is_null())
    assert together["metric"].to_list() == ["all", "part", "exact", "rouge_l"]
    assert together["n"].unique().to_list() == [len(scores)]
    assert together["accuracy"][0] == pytest.approx(scores["all"].mean(), abs=1e-12)


def test_a_task_with_one_needle_has_all_metrics_if_another_task_has_several():
    scores, predictions = tables(tasks=("vt", "niah"))
    niah = with_needles(scores.filter(pl.col("task") == "niah"), 2)
    alone = summarize(scores, predictions).filter(pl.col("task") == "vt")
    both = pl.concat([scores.filter(pl.col("task") == "vt"), niah])
    assert summarize(both, predictions).filter(pl.col("task") == "vt").equals(alone)


@pytest.mark.parametrize(("count", "tenths"), [(25, False), (26, True)])
def test_more_than_25_depths_are_grouped_in_tenths(count, tenths):
    """Only in that task; another task keeps its depths."""
    scores, predictions = tables(tasks=("vt", "niah"), systems=("ant",), per_depth=26)
    depths = [100 * i / (count - 1) for i in range(count)]
    sampled = [depths[i % count] for i in range(len(scores))]
    sampled = [
        [depth if task == "niah" else 50.0]
        for depth, task in zip(sampled, scores["task"], strict=True)
    ]
    scores = scores.with_columns(pl.Series("needle_depths", sampled))
    summary = summarize(scores, predictions).filter(pl.col("metric") == "part")
    summary = summary.drop_nulls("depth_percent")
    assert summary.filter(task="vt")["depth_percent"].unique().to_list() == [50]
    if not tenths:
        found = summary.filter(task="niah", length=512)["depth_percent"].to_list()
        assert found == pytest.approx(depths)
        return
    for row in summary.filter(task="niah").to_dicts():
        middle = row["depth_percent"]
        inside = [
            score["part"]
            for score in scores.to_dicts()
            if score["task"] == "niah" and score["length"] == row["length"]
            if middle - 5 <= score["needle_depths"][0] < middle + 5
            or score["needle_depths"][0] == 100 == middle + 5
        ]
        assert row["n"] == len(inside)
        assert row["accuracy"] == pytest.approx(sum(inside) / len(inside), abs=1e-12)
    assert summary.filter(task="niah", length=512)["depth_percent"].to_list() == [
        *range(5, 100, 10)
    ]


def test_unmatched_rows_are_an_error():
    scores, predictions = tables()
    with pytest.raises(
        ValueError, match=r"^scores: system zebra, .* has no partner in the predict"
    ):
        summarize(scores, predictions.slice(1))
    with pytest.raises(ValueError, match=r"^predictions: column 'cache_bytes' is missing"):
        summarize(scores, predictions.drop("cache_bytes"))
    with pytest.raises(ValueError, match=r"^scores: no rows"):
        summarize(scores.clear(), predictions)


def test_pooled_lengths_equal_a_mean_of_all_answers():
    # Unequal counts, so that a mean of the lengths' means would differ.
    scores, predictions = tables(per_depth=3)
    dropped = pl.col("length").eq(512) & pl.col("sample").ge(3)
    scores, predictions = scores.filter(~dropped), predictions.filter(~dropped)
    found = pool_lengths(summarize(scores, predictions))
    assert found.columns == [
        *("system", "task", "depth_percent", "metric", "n", "accuracy", "ci_low", "ci_high")
    ]
    assert len(found) == 2 * 3 * 4
    for row in found.to_dicts():
        own = [
            score[row["metric"]]
            for score in scores.to_dicts()
            if (score["system"], score["task"]) == (row["system"], row["task"])
            and score["needle_depths"] == [row["depth_percent"]]
        ]
        assert row["n"] == len(own) == 4
        assert row["accuracy"] == pytest.approx(sum(own) / 4)
        low, high = wilson(sum(own) / 4, 4)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((float(low), float(high)))
