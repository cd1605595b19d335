import polars as pl
import pytest

from needlework.figures.accuracy import accuracy
from needlework.figures.heatmap import heatmap
from needlework.figures.style.save import save
from needlework.figures.style.skipped_cells import MARK, gaps_of, told

WHY = "out of memory: at 1,024: 20 GiB asked for"


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


def _drawn(chart, tmp_path):
    save(chart, svg=tmp_path / "chart.svg")
    return (tmp_path / "chart.svg").read_text()


def test_the_heatmap_is_grey_and_crossed_where_nothing_was_run(summary, tmp_path):
    drawn = _drawn(heatmap(summary, "passkey"), tmp_path)
    # Both depths of two cells, and the two lines of subtitle.
    assert drawn.count(f">{MARK}</text>") == 4
    assert drawn.count('fill="#c4c4c4"') == 4
    assert f"Not run: {WHY}" in drawn
    assert "not run: far at 1,024 (out of memory)" in drawn
    assert ">never<" in drawn
    whole = summary.filter(pl.col("skip_reason").is_null())
    assert "not run" not in _drawn(heatmap(whole, "passkey"), tmp_path)
    assert "not run" not in _drawn(heatmap(whole.drop("skip_reason"), "passkey"), tmp_path)


def test_accuracy_is_no_point_but_a_cross_where_nothing_was_run(summary, tmp_path):
    drawn = _drawn(accuracy(summary), tmp_path)
    assert drawn.count(f">{MARK}</text>") == 2
    assert f"Not run: {WHY}" in drawn
    assert drawn.count("Answers: 4") == 3
    assert "not run: never at 512 (out of memory)" in drawn


def test_a_task_that_no_system_was_run_on_is_drawn_all_the_same(summary, tmp_path):
    other = summary.filter(pl.col("skip_reason").is_not_null()).with_columns(task=pl.lit("niah"))
    both = pl.concat([summary, other])
    assert _drawn(heatmap(both, "niah"), tmp_path).count(f">{MARK}</text>") == 4
    assert ">niah<" in _drawn(accuracy(both), tmp_path)


def test_reasons_are_told_once_a_system(summary):
    more = summary.filter(pl.col("system") == "never").with_columns(length=pl.lit(1024))
    # The longer one first, and a second task that it has none of either.
    other = summary.filter(pl.col("system") == "never").with_columns(task=pl.lit("niah"))
    gaps = gaps_of(pl.concat([more.cast(summary.schema), summary, other]))
    assert told(gaps)[:1] == [f"{MARK} not run: never at 512, 1,024 (out of memory)"]
    assert gaps_of(summary, "niah").is_empty()
