"""Heatmaps, rendered to SVG: their texts and marks."""

import polars as pl
import pytest

from needlework.figures.heatmap import heatmap

pytestmark = pytest.mark.slow


def number(text):
    return float(text.replace(",", ""))


@pytest.mark.parametrize(("systems", "lengths"), [(1, 1), (4, 6), (8, 8)])
def test_heatmap_shows_every_cell_of_its_task(drawn, make_summary, systems, lengths):
    summary = make_summary(systems, 2, lengths)
    texts, marks = drawn(heatmap(summary, task="task_b"))
    cells = summary.filter(pl.col("task") == "task_b", pl.col("depth_percent").is_not_null())
    shown = {
        (mark["System"], number(mark["Length (tokens)"]), float(mark["Depth (%)"])): mark
        for mark in marks
        if mark["kind"] == "rect mark"
    }
    columns = ["system", "length", "depth_percent", "accuracy"]
    rows = {row[:3]: row[3] for row in cells.select(columns).rows()}
    assert shown.keys() == rows.keys()
    for cell, value in rows.items():
        assert float(shown[cell]["Accuracy (%)"]) == pytest.approx(100 * value, abs=0.051)
    assert {"Context length (tokens)", "Needle depth (%)", "Accuracy (%)"} <= set(texts)
    assert {f"{length:,}" for length in cells["length"]} <= set(texts)
    assert {"n = 2 needles per cell", "Metric all: share of the references found"} <= set(texts)
    assert "Accuracy by needle depth and context length: task_b" in texts


def test_colour_scale_is_0_to_100_whatever_the_accuracies(make_summary):
    summary = make_summary().with_columns(accuracy=0.4 + 0.1 * pl.col("accuracy"))
    spec = heatmap(summary).to_dict()["spec"]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [0, 100]


def test_without_a_task_each_task_has_a_row(drawn, make_summary):
    texts, marks = drawn(heatmap(make_summary(8, 8, 8)))  # 5632 cells: more than altair's 5000
    assert [text for text in texts if text.startswith("task_")] == [f"task_{c}" for c in "abcdefgh"]
    assert sum(mark["kind"] == "rect mark" for mark in marks) == 8 * 8 * 8 * 11


def test_an_incomplete_last_row_has_an_axis_below_each_panel(drawn, make_summary):
    title = "Context length (tokens)"
    across = drawn(heatmap(make_summary(4, 1, 2), "task_a"))[0].count(title)
    assert drawn(heatmap(make_summary(8, 1, 2), "task_a"))[0].count(title) == across
    assert drawn(heatmap(make_summary(5, 1, 2), "task_a"))[0].count(title) == 5


def test_25_depths_are_all_labelled(drawn, make_summary):
    depths = [100 * depth / 24 for depth in range(25)]
    texts, marks = drawn(heatmap(make_summary(2, 1, 3, depths), task="task_a"))
    assert len([m for m in marks if m["kind"] == "rect mark"]) == 2 * 3 * 25
    assert {"0", "4.17", "95.8", "100"} <= set(texts)


def test_accuracies_are_those_of_the_chosen_metric(drawn, make_summary):
    summary = make_summary(2, 1, 2).with_columns(metric=pl.lit("part"))
    other = summary.with_columns(metric=pl.lit("all"), accuracy=pl.lit(0.5))
    texts, marks = drawn(heatmap(pl.concat([other, summary]), "task_a", "part"))
    assert {"Metric part: any reference found", "n = 2 answers per cell"} <= set(texts)
    rects = [mark for mark in marks if mark["kind"] == "rect mark"]
    shown = sorted(float(mark["Accuracy (%)"]) for mark in rects)
    cells = summary.drop_nulls("depth_percent")
    assert shown == pytest.approx(sorted(100 * cells["accuracy"]), abs=0.051)
    assert {mark["Answers"] for mark in rects} == {"2"}


def test_errors_are_one_line(make_summary):
    summary = make_summary(1, 1, 1)
    for draw, message in [
        (lambda: heatmap(summary.clear()), r"^summary: no rows; make the table again"),
        (lambda: heatmap(summary, task="vt"), r"^summary: no cell with a needle depth for task vt"),
        (lambda: heatmap(summary, metric="part"), r"^summary: no cell .* metric part"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value)
