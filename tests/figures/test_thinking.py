"""Accuracy by thinking budget, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.thinking import thinking

BUDGETS = {f"{kind}_thinking_tokens{b}": b for kind in ("dense", "walk") for b in (0, 256, 4096)}
SERIES = {name: name.partition("_")[0] for name in BUDGETS}
N = 20


def summary(tasks=("task_a", "task_b"), lengths=(8192, 32768)) -> pl.DataFrame:
    rows = []
    for s, system in enumerate([*BUDGETS, "other"]):
        for t, task in enumerate(tasks):
            for i, length in enumerate(lengths):
                for depth in (None, 50.0):
                    for metric in ("all", "part"):
                        right = (7 * s + 5 * t + 3 * i + (metric == "part")) % 11
                        share = right / N
                        counts = (s + i) % 5, t + i
                        cell = system, task, length, depth, metric, N, share
                        rows.append((*cell, 0.9 * share, share + 0.1, *counts))
    columns = ["system", "task", "length", "depth_percent", "metric", "n", "accuracy"]
    columns += ["ci_low", "ci_high", "truncated_thought", "empty"]
    return pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None)


def test_every_budget_is_a_point_with_its_outcomes(drawn):
    table = summary()
    texts, marks = drawn(thinking(table, BUDGETS, SERIES, {"task_b": "part"}))
    expected = {"Thinking budget (tokens, log scale)", "System", "Length (tokens)", "dense", "walk"}
    expected |= {"0", "256", "4,096", "8,192", "32,768", "n = 20 answers per point, all needle"}
    names = ("accuracy", "truncated thoughts", "empty answers")
    expected |= {f"{task}: {name}" for task in ("task_a", "task_b") for name in names}
    joined = "\n".join(texts)
    assert [text for text in expected if text not in joined] == []
    points = [mark for mark in marks if mark["kind"] == "point"]
    shown = {(m["System"], m["Panel"], m["Length (tokens)"]): m for m in points}
    assert len(points) == len(shown) == len(BUDGETS) * 2 * 2 * 3
    for row in table.filter(pl.col("depth_percent").is_null()).to_dicts():
        wanted = {"task_a": "all", "task_b": "part"}[row["task"]]
        if row["system"] == "other" or row["metric"] != wanted:
            continue
        shares = row["accuracy"], row["truncated_thought"] / N, row["empty"] / N
        for name, share in zip(names, shares, strict=True):
            key = row["system"], f"{row['task']}: {name}", f"{row['length']:,}"
            assert float(shown[key]["Share (%)"]) == pytest.approx(100 * share, abs=0.051)
            assert shown[key]["Thinking budget (tokens)"] == f"{BUDGETS[row['system']]:,}"
        bounds = shown[row["system"], f"{row['task']}: accuracy", f"{row['length']:,}"]
        assert float(bounds["Lower bound (%)"]) == pytest.approx(100 * row["ci_low"], abs=0.051)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="summary of none"):
        thinking(summary(), {"none": 1}, {"none": "none"})
