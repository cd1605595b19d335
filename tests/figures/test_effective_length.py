"""Effective lengths, rendered to SVG: their texts and marks."""

import polars as pl
import pytest

from needlework.figures.effective_length import effective_length
from needlework.figures.style.skipped_cells import MARK
from needlework.scoring.effective_length import effective_lengths, mean_scores

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("systems", "lengths"), [(1, 2), (5, 6), (8, 8)])
def test_every_score_and_effective_length_is_shown(drawn, make_summary, systems, lengths):
    summary = make_summary(systems, 3, lengths).with_columns(skip_reason=pl.lit(None, pl.String))
    means = mean_scores(summary)
    effective = effective_lengths(means, 0.5, 0.85)
    chart = effective_length(means, effective, 0.85)
    texts, marks = drawn(chart)
    points = {
        (mark["System"], mark["Length (tokens)"]): float(mark["Score (%)"])
        for mark in marks
        if "Score (%)" in mark and mark["kind"] == "point"
    }
    expected = {
        (row["system"], f"{row['length']:,}"): row["score"] for row in means.iter_rows(named=True)
    }
    assert points.keys() == expected.keys()
    for point, score in expected.items():
        assert points[point] == pytest.approx(100 * score, abs=0.051)
    criteria = {"score": "50 %", "share": "85 % of its score at 512"}

    def shown(length):
        return "none" if length is None else f"{length:,}"

    assert {
        (
            m["System"],
            m["Threshold"],
            m["Effective length (tokens)"],
            m["Lower bound (95 %)"],
            m["Upper bound (95 %)"],
        )
        for m in marks
        if "Threshold" in m and m["kind"] == "point"
    } == {
        (
            row["system"],
            criteria[row["criterion"]],
            *(shown(row[key]) for key in ("effective_length", "ci_low", "ci_high")),
        )
        for row in effective.iter_rows(named=True)
    }
    ranges = {
        (m["system"], m["criterion"]): (m["Effective length (tokens)"], m["ci_high"])
        for m in marks
        if m["kind"] == "rule mark" and "criterion" in m
    }
    longest = {(m["System"], m["Threshold"]): m["is_longest"] for m in marks if "is_longest" in m}
    for row in effective.iter_rows(named=True):
        cell = row["system"], criteria[row["criterion"]]
        assert ranges[cell] == (shown(row["ci_low"]), shown(row["ci_high"]))
        is_longest = row["effective_length"] == row["longest_length"]
        assert longest[cell] == str(is_longest).lower()
    shape = chart.to_dict()["hconcat"][1]["layer"][1]["encoding"]["shape"]["scale"]
    assert dict(zip(shape["domain"], shape["range"], strict=True))[True].startswith("triangle")
    assert {"none", "Threshold", *criteria.values()} <= set(texts)
    assert "Score: mean accuracy over 3 tasks, equally weighted" in texts


def test_without_a_length_run_on_all_tasks_the_figure_says_so(drawn, make_summary):
    summary = make_summary(1, 1, 2).with_columns(skip_reason=pl.lit(None, pl.String))
    skipped = summary.filter(pl.col("depth_percent").is_null()).with_columns(
        *(pl.lit(None, pl.Float64).alias(key) for key in ("accuracy", "ci_low", "ci_high")),
        metric=pl.lit(None, pl.String), skip_reason=pl.lit("out of memory: no"),
        task=pl.lit("task_b"),
    )  # fmt: skip
    means = mean_scores(pl.concat([summary, skipped]))
    texts, _ = drawn(effective_length(means, effective_lengths(means, 0.5, 0.85), 0.85))
    assert "No length was run with all tasks" in texts


def test_a_skipped_length_is_a_cross(drawn, make_summary):
    summary = make_summary(2, 1, 3).with_columns(skip_reason=pl.lit(None, pl.String))
    stopped = (pl.col("system") == "dense") & (pl.col("length") == 1024)
    skipped = summary.filter(stopped).head(1).with_columns(
        *(pl.lit(None, pl.Float64).alias(key) for key in ("accuracy", "ci_low", "ci_high")),
        skip_reason=pl.lit("out of memory: no"),
    )  # fmt: skip
    note = f"{MARK} not run with all tasks, counted as below the threshold"
    for table, count in ((summary, 0), (pl.concat([summary.filter(~stopped), skipped]), 1)):
        means = mean_scores(table)
        texts, marks = drawn(effective_length(means, effective_lengths(means, 0.5, 0.85), 0.85))
        assert texts.count(MARK) == count
        assert (note in texts) == (count == 1)
        points = [mark for mark in marks if "Score (%)" in mark and mark["kind"] == "point"]
        assert len(points) == 6 - count
