"""RULER's own scoring loop gives an export the scores that needlework gives."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from needlework.scoring.metrics import match_all, match_part
from needlework.tasks.formats.ruler_export import export_ruler
from needlework.tasks.formats.ruler_files import read_ruler_jsonl

COUNT = 6


@pytest.fixture
def exported(tables: tuple[Path, Path], tmp_path: Path) -> tuple[list[dict], list[dict]]:
    data, answers = tmp_path / "validation.jsonl", tmp_path / "task.jsonl"
    export_ruler(*tables, data, answers)
    return tuple([json.loads(line) for line in p.read_text().splitlines()] for p in (data, answers))


def nvidia_score(lines: list[dict], part: bool) -> float:
    """The score that RULER's eval/evaluate.py gives a prediction file, 0 to 100."""
    scores = []
    for line in lines:
        assert line["others"].get("id", line["index"]) == line["index"]
        answer = re.sub(r"[\x00-\x1f]", "\n", line["pred"].strip()).strip().lower()
        hits = [1.0 if reference.lower() in answer else 0.0 for reference in line["outputs"]]
        scores.append(max(hits) if part else sum(hits) / len(hits))
    return round(sum(scores) / len(scores) * 100, 2)


def test_nvidias_evaluation_gives_the_same_scores(tables, exported):
    _, answers = exported
    samples, predictions = (pl.read_parquet(path) for path in tables)
    rows = samples.join(predictions, on="sample").sort("sample")
    for part, metric in ((False, match_all), (True, match_part)):
        ours = [metric(row["prediction"], row["outputs"]) for row in rows.iter_rows(named=True)]
        theirs = nvidia_score(answers, part)
        assert theirs == round(100 * sum(ours) / COUNT, 2)
        assert 0 < theirs < 100


def test_data_and_answers_describe_the_samples(tables, exported):
    data, answers = exported
    samples, predictions = (pl.read_parquet(path) for path in tables)
    answer_of = dict(predictions.select("sample", "prediction").iter_rows())
    for row, question, answer in zip(samples.iter_rows(named=True), data, answers, strict=True):
        assert question["index"] == answer["index"] == row["sample"]
        assert question["input"] == answer["input"] == row["context"] + row["question"]
        assert question["input"] + question["answer_prefix"] == row["prompt"]
        assert question["outputs"] == answer["outputs"] == row["outputs"]
        assert (
            question["length"] == answer["length"] == row["tokens"] + row["max_new_tokens"] <= 1500
        )
        assert answer["pred"] == answer_of[row["sample"]]
        if row["needles"]:
            assert question["token_position_answer"] == row["needles"][0]["token_position"]
        else:
            assert "token_position_answer" not in question
    keys = "index input outputs length length_w_model_temp answer_prefix token_position_answer"
    assert keys.startswith(" ".join(data[0]))
    assert list(answers[0]) == [
        "index",
        "pred",
        "input",
        "outputs",
        "others",
        "truncation",
        "length",
    ]


def test_exported_data_can_be_read_again(exported, tmp_path: Path):
    data, _ = exported
    rows = read_ruler_jsonl(tmp_path / "validation.jsonl")
    assert len(rows) == len(data) == COUNT
    for row, written in zip(rows, data, strict=True):
        assert row.prefix == written["answer_prefix"]
        read = row.model_dump(include={"index", "input", "outputs", "length"})
        assert read == {key: written[key] for key in read}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table[1:],
            "predictions.parquet: no answer to task cwe, length 1500",
        ),
        (
            lambda table: table[:0],
            "predictions.parquet: no answer to task cwe, length 1500",
        ),
        (
            lambda table: table.with_columns(prediction=pl.lit(None, pl.String)),
            "predictions.parquet: no answer to task cwe, length 1500, sample 0; evaluate it again",
        ),
        (
            lambda table: pl.concat([table, table[:1]]),
            "predictions.parquet: two answers to task cwe, length 1500, sample 5; evaluate it",
        ),
        (
            lambda table: pl.concat([table, table[:1].with_columns(sample=pl.lit(99, pl.Int64))]),
            "samples.parquet: no sample for the answer to task cwe, length 1500, sample 99",
        ),
    ],
)
@pytest.mark.parametrize("tables", ["cwe"], indirect=True)
def test_tables_of_different_samples_are_rejected(tables, change, message: str, tmp_path: Path):
    changed = tmp_path / "predictions.parquet"
    change(pl.read_parquet(tables[1])).write_parquet(changed)
    with pytest.raises(ValueError, match=re.escape(message)):
        export_ruler(tables[0], changed, tmp_path / "data.jsonl", tmp_path / "answers.jsonl")


def test_thinking_is_not_exported(tables, tmp_path):
    samples, predictions = tables
    with_thinking = pl.read_parquet(predictions).with_columns(
        prediction="<think>Is it 7?</think>\nIt is " + pl.col("prediction")
    )
    with_thinking.write_parquet(tmp_path / "thought.parquet")
    answers = tmp_path / "answers.jsonl"
    export_ruler(samples, tmp_path / "thought.parquet", tmp_path / "data.jsonl", answers)
    answer_of = dict(pl.read_parquet(predictions).select("sample", "prediction").iter_rows())
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        assert row["pred"] == f"\nIt is {answer_of[row['index']]}"
