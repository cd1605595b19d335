"""Accuracy before and after fine-tuning, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.finetuning import finetuning


def test_each_depth_is_a_point_before_and_after(drawn, make_summary):
    depths = make_summary(4, 2, 1, n=22).drop_nulls("depth_percent").drop("length")
    before = {"infini": "dense", "sketchwalk": "dense"}
    texts, marks = drawn(finetuning(depths, before))
    labels = {
        "dense": "dense (before)",
        "infini": "infini (after, from dense)",
        "sketchwalk": "sketchwalk (after, from dense)",
    }
    assert {*labels.values(), "task_a", "task_b", "Needle depth (%)", "Accuracy (%)"} <= set(texts)
    assert "n = 22 needles per point, all lengths pooled" in texts
    points = [mark for mark in marks if mark["kind"] == "point"]
    shown = {(m["System"], m["Task"], float(m["Depth (%)"])): m for m in points}
    cells = depths.filter(pl.col("system").is_in(list(labels)))
    assert len(points) == len(shown) == len(cells) == 3 * 2 * 11
    for row in cells.to_dicts():
        mark = shown[labels[row["system"]], row["task"], row["depth_percent"]]
        for name, key in (
            ("Accuracy (%)", "accuracy"),
            ("Lower bound (%)", "ci_low"),
            ("Upper bound (%)", "ci_high"),
        ):
            assert float(mark[name]) == pytest.approx(100 * row[key], abs=0.051)
