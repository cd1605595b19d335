"""Skipped cells in figures."""

import polars as pl
import pytest

from needlework.figures.accuracy import accuracy
from needlework.figures.heatmap import heatmap
from needlework.figures.style.save import save
from needlework.figures.style.skipped_cells import MARK, skip_notes, skipped_cells

WHY = "out of memory: at 1,024: 20 GiB requested"


def _row(system, length, depth, percent=None, why=None):
    return {
        "system": system, "task": "passkey", "length": length, "depth_percent": depth,
        "metric": None if why else "all", "n": 0 if why else 4, "accuracy": percent,
        "ci_low": percent, "ci_high": percent, "skip_reason": why,
    }  # fmt: skip


@pytest.fixture
def summary():
    rows = [_row("dense", n, depth, 1.0) for n in (512, 1024) for depth in (None, 0.0, 50.0)]
    rows += [_row("far", 512, depth, 0.5) for depth in (None, 0.0, 50.0)]
    rows += [_row("far", 1024, None, why=WHY), _row("never", 512, None, why=WHY)]
    return pl.DataFrame(rows, infer_schema_length=None)


def _svg(chart, tmp_path):
    save(chart, svg=tmp_path / "chart.svg")
    return (tmp_path / "chart.svg").read_text()


@pytest.mark.slow
def test_skipped_cells_of_the_heatmap_are_grey_and_crossed(summary, tmp_path):
    svg = _svg(heatmap(summary, "passkey"), tmp_path)
    # Both depths of two cells.
    assert svg.count(f">{MARK}</text>") == 4
    assert svg.count('fill="#c4c4c4"') == 4
    assert f"Not run: {WHY}" in svg
    assert "not run: far at 1,024 (out of memory)" in svg
    assert ">never<" in svg
    whole = summary.filter(pl.col("skip_reason").is_null())
    assert "not run" not in _svg(heatmap(whole, "passkey"), tmp_path)
    assert "not run" not in _svg(heatmap(whole.drop("skip_reason"), "passkey"), tmp_path)


def test_skipped_cells_of_the_accuracy_figure_are_crosses(summary, tmp_path):
    svg = _svg(accuracy(summary), tmp_path)
    assert svg.count(f">{MARK}</text>") == 2
    assert f"Not run: {WHY}" in svg
    assert svg.count("Answers: 4") == 3
    assert "not run: never at 512 (out of memory)" in svg


def test_a_task_that_no_system_ran_is_svg(summary, tmp_path):
    other = summary.filter(pl.col("skip_reason").is_not_null()).with_columns(task=pl.lit("niah"))
    both = pl.concat([summary, other])
    assert _svg(heatmap(both, "niah"), tmp_path).count(f">{MARK}</text>") == 4
    assert ">niah<" in _svg(accuracy(both), tmp_path)


def test_each_system_and_reason_is_one_note(summary):
    more = summary.filter(pl.col("system") == "never").with_columns(length=pl.lit(1024))
    # The longer length first, and a second task that was not run either.
    other = summary.filter(pl.col("system") == "never").with_columns(task=pl.lit("niah"))
    skipped = skipped_cells(pl.concat([more.cast(summary.schema), summary, other]))
    assert skip_notes(skipped)[:1] == [f"{MARK} not run: never at 512, 1,024 (out of memory)"]
    assert skipped_cells(summary, "niah").is_empty()
