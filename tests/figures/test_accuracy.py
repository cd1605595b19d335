"""The figure of accuracy by length, rendered to SVG: its texts and marks."""

import polars as pl
import pytest

from needlework.figures.accuracy import accuracy
from needlework.figures.style.theme import COLORS

CELL = ["system", "task", "length", "accuracy", "ci_low", "ci_high"]


def number(text):
    return float(text.replace(",", ""))


@pytest.mark.parametrize(("systems", "tasks", "lengths"), [(1, 1, 1), (4, 2, 6), (8, 13, 8)])
def test_accuracy_shows_every_point(drawn, make_summary, systems, tasks, lengths):
    summary = make_summary(systems, tasks, lengths, n=22)
    texts, marks = drawn(accuracy(summary))
    shown = {
        (mark["System"], mark["Task"], number(mark["Length (tokens)"])): mark
        for mark in marks
        if mark["kind"] == "point"
    }
    cells = summary.filter(pl.col("depth_percent").is_null())
    rows = {row[:3]: row[3:] for row in cells.select(CELL).rows()}
    assert shown.keys() == rows.keys()
    for cell, values in rows.items():
        for key, value in zip(
            ("Accuracy (%)", "Lower bound (%)", "Upper bound (%)"), values, strict=True
        ):
            assert float(shown[cell][key]) == pytest.approx(100 * value, abs=0.051)
    assert {"Context length (tokens, log scale)", "Accuracy (%)", "System"} <= set(texts)
    assert {*cells["system"], *cells["task"], *(f"{n:,}" for n in cells["length"])} <= set(texts)
    assert "n = 22 answers per point, all needle depths pooled" in texts


def test_each_task_has_its_metric(drawn, make_summary):
    summary = make_summary(2, 3, 2)
    other = summary.with_columns(metric=pl.lit("part"), accuracy=pl.col("accuracy") / 2)
    texts, marks = drawn(accuracy(pl.concat([summary, other]), {"task_b": "part"}))
    assert {"task_a (all)", "task_b (part)", "task_c (all)"} <= set(texts)
    assert "Metric all: share of the references found; part: any reference found" in texts
    points = [mark for mark in marks if mark["kind"] == "point"]
    shown = {
        (mark["System"], mark["Task"], number(mark["Length (tokens)"])): (
            mark["Metric"],
            float(mark["Accuracy (%)"]),
        )
        for mark in points
    }
    cells = summary.filter(pl.col("depth_percent").is_null())
    assert len(points) == len(shown) == len(cells)
    for row in cells.to_dicts():
        metric, scale = ("part", 50) if row["task"] == "task_b" else ("all", 100)
        expected = (metric, pytest.approx(scale * row["accuracy"], abs=0.051))
        assert shown[row["system"], row["task"], row["length"]] == expected


def test_a_system_keeps_its_colour(drawn, make_summary):
    _, few = drawn(accuracy(make_summary(2, 1, 3)))
    _, many = drawn(accuracy(make_summary(8, 1, 3)))
    for marks in (few, many):
        for index, system in enumerate(["dense", "sketchwalk"]):
            points = [m for m in marks if m["kind"] == "point" and m["System"] == system]
            assert {point["stroke"].upper() for point in points} == {COLORS[index].upper()}


def test_different_sample_sizes_are_a_range(drawn, make_summary):
    summary = pl.concat([make_summary(1, 1, 2, n=20), make_summary(2, 1, 2, n=22)[-24:]])
    texts, _ = drawn(accuracy(summary))
    assert "n = 20\N{EN DASH}22 answers per point, all needle depths pooled" in texts


def test_errors_are_one_line(make_summary):
    summary = make_summary(1, 1, 1)
    for draw, message in [
        (lambda: accuracy(summary.clear()), r"^summary: no rows"),
        (
            lambda: accuracy(summary, {"task_a": "exact"}),
            r"^summary: no all-depths row of metric exact for task task_a; summarize",
        ),
        (lambda: accuracy(summary.drop("ci_low")), r"^summary: column 'ci_low' is missing"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value)
