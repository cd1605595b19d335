import polars as pl
import pytest

from needlework.scoring.compare import compare, compare_speed
from needlework.scoring.score import score, unscored
from needlework.scoring.summarize import summarize
from needlework.tables import skipped
from needlework.tables.skipped import Skipped


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
        prefill_density=pl.lit(1.0), decode_density=pl.lit(1.0), cache_bytes=pl.lit(10),
        prefill_seconds=pl.lit(1.0), decode_seconds=pl.lit(1.0), peak_memory_bytes=pl.lit(5),
        new_tokens=pl.lit(3),
    )  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """The baseline at both lengths; `far` stopped at the longer, `never` at both."""
    scores = pl.concat([_scores("dense", 512), _scores("dense", 1024), _scores("far", 512, 0.0)])
    gaps = [("far", 1024), ("never", 512), ("never", 1024)]
    paths = []
    for i, (system, length) in enumerate(gaps):
        paths.append(tmp_path / f"{i}.parquet")
        why = Skipped(system, "passkey", length, "out of memory", "at 512: no more")
        why.write(unscored(), paths[-1])
    whole = tmp_path / "whole.parquet"
    scores.write_parquet(whole)
    # Tables without rows are read beside the others.
    together = pl.read_parquet([whole, *paths])
    assert together.equals(scores)
    return together, _predictions(together), skipped.read([whole, *paths])


def test_the_summary_has_a_row_for_what_was_not_run(tables):
    summary = summarize(*tables)
    gaps = summary.filter(pl.col("skip_reason").is_not_null())
    assert gaps.select("system", "length", "n", "accuracy", "metric", "skip_reason").rows() == [
        (system, length, 0, None, None, "out of memory: at 512: no more")
        for system, length in (("far", 1024), ("never", 512), ("never", 1024))
    ]
    rest = summary.filter(pl.col("skip_reason").is_null())
    assert rest.drop("skip_reason").equals(summarize(*tables[:2]).drop("skip_reason"))


def test_a_run_without_an_answer_says_why(tables):
    scores, predictions, gaps = tables
    why = r"^none of 3 cells was answered; far, passkey at 1,024: out of memory: at 512: no more$"
    with pytest.raises(ValueError, match=why):
        summarize(scores.clear(), predictions.clear(), gaps)


def test_systems_are_compared_where_both_were_run(tables):
    scores, predictions, gaps = tables
    rows, markdown = compare(scores, predictions, "dense", None, gaps)
    assert [(row["system"], row["length"]) for row in rows] == [("far", 512)]
    assert "never" not in markdown
    rows, _ = compare_speed(predictions, predictions, "dense", gaps)
    assert [(row["system"], row["length"]) for row in rows] == [("far", 512)]
    with pytest.raises(ValueError, match="no partner"):
        compare(scores, predictions, "dense")


def test_a_baseline_that_stopped_leaves_others_without_a_pair():
    scores = pl.concat([_scores("dense", 512), _scores("far", 512), _scores("far", 1024)])
    gaps = pl.DataFrame({"system": ["dense"], "task": ["passkey"], "length": [1024]})
    rows, _ = compare(scores, _predictions(scores), "dense", None, gaps)
    assert [row["length"] for row in rows] == [512]


def test_an_unscored_table_has_the_columns_of_a_scored_one():
    samples = pl.DataFrame(
        {
            "task": ["t"], "length": [9], "sample": [0], "outputs": [["1"]],
            "value_type": ["numbers"], "needles": [[{"key": "k", "depth_percent": 0.0}]],
        }
    )  # fmt: skip
    predictions = pl.DataFrame(
        {"system": ["s"], "task": ["t"], "length": [9], "sample": [0], "prediction": ["1"]}
    )
    assert unscored().schema == score(samples, predictions, "all", True).schema
