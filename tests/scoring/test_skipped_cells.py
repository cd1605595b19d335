"""Skipped cells in summaries and comparisons."""

import polars as pl
import pytest

from needlework.scoring.compare import compare, compare_speed
from needlework.scoring.score import empty_scores, score
from needlework.scoring.summarize import summarize
from needlework.tables import skipped
from needlework.tables.skipped import SkippedCell


def _scores(system, length, value=1.0):
    metrics = {"all": value, "part": value, "exact": value, "rouge_l": None, "token_f1": None}
    row = {"system": system, "task": "passkey", "length": length, "sample": 0, "depth_percent": 0.0}
    needles = {"needle_keys": [["a"]], "needle_depths": [[0.0]], "needle_found": [[value > 0]]}
    return pl.DataFrame({**{k: [v] for k, v in (row | metrics).items()}, **needles}).cast(
        {"rouge_l": pl.Float64, "token_f1": pl.Float64}
    )


def _predictions(scores):
    return scores.select(
        "system", "task", "length", "sample",
        prefill_density=pl.lit(1.0), decode_density=pl.lit(1.0),
        sparse_layers_prefill_density=pl.lit(None), sparse_layers_decode_density=pl.lit(None),
        cache_bytes=pl.lit(10),
        prefill_seconds=pl.lit(1.0), decode_seconds=pl.lit(1.0), peak_memory_bytes=pl.lit(5),
        new_tokens=pl.lit(3),
    )  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """The baseline at both lengths; `far` skips the longer, `never` both."""
    scores = pl.concat([_scores("dense", 512), _scores("dense", 1024), _scores("far", 512, 0.0)])
    not_run = [("far", 1024), ("never", 512), ("never", 1024)]
    paths = []
    for i, (system, length) in enumerate(not_run):
        paths.append(tmp_path / f"{i}.parquet")
        cell = SkippedCell(system, "passkey", length, "out of memory", "at 512: no more")
        skipped.write(empty_scores(), paths[-1], [cell])
    whole = tmp_path / "whole.parquet"
    scores.write_parquet(whole)
    # Tables without rows can be read together with the others.
    together = pl.read_parquet([whole, *paths])
    assert together.equals(scores)
    return together, _predictions(together), skipped.read([whole, *paths])


def test_the_summary_has_a_row_for_each_skipped_cell(tables):
    summary = summarize(*tables)
    not_run = summary.filter(pl.col("skip_reason").is_not_null())
    assert not_run.select("system", "length", "n", "accuracy", "metric", "skip_reason").rows() == [
        (system, length, 0, None, None, "out of memory: at 512: no more")
        for system, length in (("far", 1024), ("never", 512), ("never", 1024))
    ]
    rest = summary.filter(pl.col("skip_reason").is_null())
    assert rest.drop("skip_reason").equals(summarize(*tables[:2]).drop("skip_reason"))


def test_a_run_without_answers_gives_the_reason(tables):
    scores, predictions, not_run = tables
    message = (
        r"^none of 3 cells has an answer; far, passkey at 1,024: out of memory: at 512: no more$"
    )
    with pytest.raises(ValueError, match=message):
        summarize(scores.clear(), predictions.clear(), not_run)


def test_systems_are_compared_in_cells_that_both_ran(tables):
    scores, predictions, not_run = tables
    rows, markdown = compare(scores, predictions, "dense", None, not_run)
    assert [(row["system"], row["length"]) for row in rows] == [("far", 512)]
    assert "never" not in markdown
    rows, _ = compare_speed(predictions, predictions, "dense", not_run)
    assert [(row["system"], row["length"]) for row in rows] == [("far", 512)]
    with pytest.raises(ValueError, match="no partner"):
        compare(scores, predictions, "dense")


def test_cells_that_the_baseline_skipped_are_left_out():
    scores = pl.concat([_scores("dense", 512), _scores("far", 512), _scores("far", 1024)])
    not_run = pl.DataFrame({"system": ["dense"], "task": ["passkey"], "length": [1024]})
    rows, _ = compare(scores, _predictions(scores), "dense", None, not_run)
    assert [row["length"] for row in rows] == [512]


def test_empty_scores_have_the_schema_of_scores():
    samples = pl.DataFrame(
        {
            "task": ["t"], "length": [9], "sample": [0], "outputs": [["1"]],
            "value_type": ["numbers"], "needles": [[{"key": "k", "depth_percent": 0.0}]],
        }
    )  # fmt: skip
    predictions = pl.DataFrame(
        {"system": ["s"], "task": ["t"], "length": [9], "sample": [0], "prediction": ["1"]}
    )
    assert empty_scores().schema == score(samples, predictions, "all", True).schema
