"""Others' formats: NVIDIA's loop scores an export as we do, kvpress' loader finds its table."""

import json
import re
from pathlib import Path

import datasets
import polars as pl
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter
from support.paths import DATA

from needlework.config.tasks import AnyTask, Passkey, PasskeyExamples, TaskExamples
from needlework.finetune_data.passkey import examples as passkey_rows
from needlework.finetune_data.task import examples as task_rows
from needlework.scoring.metrics import match_all, match_part
from needlework.tasks.formats.export import export_dataset, export_kvpress, export_ruler
from needlework.tasks.formats.ruler_files import read_ruler_jsonl
from needlework.tasks.generate import Sampler, samples

TASKS = {
    "niah_multivalue": {},
    "cwe": {},
    "qa_1": {"path": str(DATA / "squad-small.json")},
}
COUNT = 6


@pytest.fixture(scope="module", params=TASKS)
def tables(request, byte_tokenizer, tmp_path_factory) -> tuple[Path, Path]:
    """Samples of a task, and answers to them in another order: right, wrong, half right, odd."""
    name, folder = request.param, tmp_path_factory.mktemp("tables")
    task = TypeAdapter(AnyTask).validate_python({"type": name, **TASKS[name]})
    sampler = Sampler(
        task, byte_tokenizer, task_name=name, length=1500, depths=[0, 50, 100], seed=1
    )
    made = samples(sampler, COUNT)
    outputs = made["outputs"].to_list()
    answers = [
        ", ".join(outputs[0]),
        "nothing of the kind é",
        f"It is {outputs[2][0].upper()}.",
        "",
        "\x00" + "\x07".join(outputs[4]) + " ",
        outputs[5][0][:3] + "\n" + outputs[5][0][3:],
    ]
    predictions = made.select("task", "length", "sample").with_columns(
        pl.lit("dense").alias("system"), pl.Series("prediction", answers)
    )
    made.write_parquet(folder / "samples.parquet")
    predictions.reverse().write_parquet(folder / "predictions.parquet")
    return folder / "samples.parquet", folder / "predictions.parquet"


@pytest.fixture
def exported(tables: tuple[Path, Path], tmp_path: Path) -> tuple[list[dict], list[dict]]:
    data, answers = tmp_path / "validation.jsonl", tmp_path / "task.jsonl"
    export_ruler(*tables, data, answers)
    return tuple([json.loads(line) for line in p.read_text().splitlines()] for p in (data, answers))


def nvidia_score(lines: list[dict], part: bool) -> float:
    """What RULER's eval/evaluate.py makes of a prediction file, 0 to 100."""
    scores = []
    for line in lines:
        assert line["others"].get("id", line["index"]) == line["index"]
        answer = re.sub(r"[\x00-\x1f]", "\n", line["pred"].strip()).strip().lower()
        hits = [1.0 if reference.lower() in answer else 0.0 for reference in line["outputs"]]
        scores.append(max(hits) if part else sum(hits) / len(hits))
    return round(sum(scores) / len(scores) * 100, 2)


def test_nvidias_evaluation_scores_it_as_we_do(tables, exported):
    _, answers = exported
    made, predictions = (pl.read_parquet(path) for path in tables)
    rows = made.join(predictions, on="sample").sort("sample")
    for part, metric in ((False, match_all), (True, match_part)):
        ours = [metric(row["prediction"], row["outputs"]) for row in rows.iter_rows(named=True)]
        theirs = nvidia_score(answers, part)
        assert theirs == round(100 * sum(ours) / COUNT, 2)
        assert 0 < theirs < 100


def test_data_and_answers_are_of_the_samples(tables, exported):
    data, answers = exported
    made, predictions = (pl.read_parquet(path) for path in tables)
    said = dict(predictions.select("sample", "prediction").iter_rows())
    for row, asked, answer in zip(made.iter_rows(named=True), data, answers, strict=True):
        assert asked["index"] == answer["index"] == row["sample"]
        assert asked["input"] == answer["input"] == row["context"] + row["question"]
        assert asked["input"] + asked["answer_prefix"] == row["prompt"]
        assert asked["outputs"] == answer["outputs"] == row["outputs"]
        assert asked["length"] == answer["length"] == row["tokens"] + row["max_new_tokens"] <= 1500
        assert answer["pred"] == said[row["sample"]]
        if row["needles"]:
            assert asked["token_position_answer"] == row["needles"][0]["token_position"]
        else:
            assert "token_position_answer" not in asked
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


def test_what_is_written_can_be_read_again(tables, exported, tmp_path: Path):
    data, _ = exported
    rows = read_ruler_jsonl(tmp_path / "validation.jsonl")
    assert rows == data


def test_kvpress_finds_its_table(tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    made = pl.read_parquet(tables[0])
    for name in ("a", "b"):
        (folder := tmp_path / "tables/4096").mkdir(parents=True, exist_ok=True)
        export_kvpress(tables[0], folder / f"test-{name}.parquet")
    found = datasets.load_dataset(
        str(tmp_path / "tables"), data_dir="4096", split="test", cache_dir=str(tmp_path / "cache")
    )
    frame = found.to_pandas()
    expected = made.rename({"outputs": "answer"}).select(found.column_names)
    assert found.column_names == (
        ["context", "question", "answer_prefix", "answer", "max_new_tokens", "task"]
    )
    assert len(frame) == 2 * COUNT
    assert pl.from_arrow(found.data.table).equals(pl.concat([expected, expected]))
    (folder / "test-a.parquet.provenance.json").write_text("{}")
    named = datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", cache_dir=str(tmp_path / "cache")
    )
    assert pl.from_arrow(named["train"].data.table).equals(pl.from_arrow(found.data.table))
    # The evaluation groups by context and wants one answer prefix in each group.
    assert all(frame.groupby("context")["answer_prefix"].nunique() == 1)


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
def test_tables_of_different_samples_are_refused(tables, change, message: str, tmp_path: Path):
    changed = tmp_path / "predictions.parquet"
    change(pl.read_parquet(tables[1])).write_parquet(changed)
    with pytest.raises(ValueError, match=re.escape(message)):
        export_ruler(tables[0], changed, tmp_path / "data.jsonl", tmp_path / "answers.jsonl")


def test_samples_are_read_one_after_the_other(tables, tmp_path: Path):
    export_kvpress(tables[0], tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == COUNT


NVIDIA = {"index": 2169, "input": "A text. What?", "outputs": ["7"], "length": 30}
LM_EVAL = {**NVIDIA, "index": 0, "max_length": 4096, "gen_prefix": "The number is"}


def jsonl(*rows: dict) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_both_makers_lines_are_read(tmp_path: Path):
    (path := tmp_path / "x.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + jsonl(NVIDIA, {**NVIDIA, "answer_prefix": " It is"}, LM_EVAL).replace(b"\n", b"\r\n\r\n")
        + b"\n\n"
    )
    plain, prefixed, lm_eval = read_ruler_jsonl(path)
    assert plain == {**NVIDIA, "answer_prefix": ""}
    assert prefixed == {**NVIDIA, "answer_prefix": " It is"}
    assert lm_eval == {
        **NVIDIA,
        "index": 0,
        "max_length": 4096,
        "answer_prefix": " The number is",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such file; name one in RULER's JSON lines"),
        (b"\n \n", ": empty; name one in RULER's JSON lines"),
        (jsonl(NVIDIA) + b"\n{", ":2: not JSON: "),
        (jsonl(NVIDIA) + b'\n{"input": "\xff"}', ":2: not UTF-8 at byte 11 of the line"),
        (jsonl(NVIDIA, [1]), ":2: not an object; write one with index, input and outputs"),
        (b'{"index": 1}', ":1: input is not there; it should be text"),
        (jsonl({**NVIDIA, "index": "1"}), ":1: index is '1'; it should be a whole number"),
        (jsonl({**NVIDIA, "index": True}), ":1: index is True; it should be a whole number"),
        (jsonl({**NVIDIA, "length": 3.5}), ":1: length is 3.5; it should be a whole number"),
        (jsonl({**LM_EVAL, "max_length": None}), ":1: max_length is None; it should be a whole"),
        (jsonl({**LM_EVAL, "gen_prefix": None}), ":1: gen_prefix is None; it should be text"),
        (jsonl({**NVIDIA, "outputs": "7"}), ":1: outputs is '7'; it should be a list of answers"),
        (jsonl({**NVIDIA, "outputs": []}), ":1: outputs is []; it should be a list of answers"),
        (jsonl({**NVIDIA, "outputs": [7]}), ":1: outputs is [7]; it should be a list of answers"),
        (jsonl({**NVIDIA, "outputs": [""]}), ":1: outputs is ['']; it should be a list of answers"),
    ],
)
def test_a_line_at_fault_is_named(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jsonl") as caught:
        read_ruler_jsonl(path)
    assert str(caught.value).removeprefix(str(path)).startswith(message)
    assert "\n" not in str(caught.value)


def test_thoughts_are_not_exported(tables, tmp_path):
    made, predictions = tables
    thought = pl.read_parquet(predictions).with_columns(
        prediction="<think>Is it 7?</think>\nIt is " + pl.col("prediction")
    )
    thought.write_parquet(tmp_path / "thought.parquet")
    answers = tmp_path / "answers.jsonl"
    export_ruler(made, tmp_path / "thought.parquet", tmp_path / "data.jsonl", answers)
    said = dict(pl.read_parquet(predictions).select("sample", "prediction").iter_rows())
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        assert row["pred"] == f"\nIt is {said[row['index']]}"


@pytest.mark.parametrize("kind", ["passkey", "task", "text"])
def test_rows_to_train_on_open_as_a_dataset(kind, byte_tokenizer, tmp_path):
    if kind == "passkey":
        config = PasskeyExamples(examples=6, length=128)
        table = passkey_rows(config, byte_tokenizer, 1)
    elif kind == "task":
        config = TaskExamples(task="key", examples=6, length=128)
        table = task_rows(config, byte_tokenizer, 1, task=Passkey(), depths=[0.0], haystacks={})
    else:
        ids = {"input_ids": [[1, 2, 3], [4, 5, 6]]}
        table = pl.DataFrame(ids, {"input_ids": pl.List(pl.Int32)})
    table.write_parquet(tmp_path / "rows.parquet")
    export_dataset(tmp_path / "rows.parquet", tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    assert loaded.to_list() == table.to_dicts()
    assert {f.name for f in (tmp_path / "saved").iterdir()} == {
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    }
    # The table itself opens as well.
    opened = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "rows.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert opened.to_list() == table.to_dicts()
    export_dataset(tmp_path / "rows.parquet", tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
