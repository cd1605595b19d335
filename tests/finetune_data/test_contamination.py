"""Training rows contain no evaluation sample, whatever their source; others are rejected."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import DATA
from support.toy_tokenizers import TINY

from needlework.config.finetune_data import PasskeyExamples, TaskExamples
from needlework.config.tasks.registry import AnyTask
from needlework.finetune_data.contamination import TrainingRows, check_contamination
from needlework.finetune_data.passkey import make_examples as passkey_rows
from needlework.finetune_data.task import make_examples as task_rows
from needlework.tasks import passkey
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

DEPTHS = [0.0, 50.0, 100.0]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TINY)


def task_of(kind: str, **keys):
    return TypeAdapter(AnyTask).validate_python({"type": kind, **keys})


def sample_tables(tokenizer, folder: Path, count: int, length: int, task, name="a_task") -> dict:
    sampler = Sampler(task, tokenizer, task_name=name, length=length, depths=DEPTHS, seed=1)
    path = folder / f"{name}-{length}.parquet"
    make_samples(sampler, count).write_parquet(path)
    return {(name, length): str(path)}


def training_rows(tokenizer, count: int, length: int, task) -> pl.DataFrame:
    config = TaskExamples(task="a_task", examples=count, length=length)
    return task_rows(config, tokenizer, 1, task=task, depths=DEPTHS, haystacks={})


@pytest.mark.parametrize("digits", range(1, 8))
def test_training_pass_keys_are_never_evaluated(digits, tokenizer, tmp_path):
    task = task_of("passkey", digits=digits)
    tables = sample_tables(tokenizer, tmp_path, 150, 128, task)
    keys_evaluated = set(pl.read_parquet(tables["a_task", 128])["outputs"].explode())
    config = PasskeyExamples(examples=300, length=128, digits=[digits])
    for rows in (
        passkey_rows(config, tokenizer, 1),
        training_rows(tokenizer, 150, 128, task),
    ):
        assert keys_evaluated.isdisjoint(answer.strip() for answer in rows["answer"])
        assert check_contamination("keys", rows, tables).rows() == [("keys", "a_task", 128, 150, 0)]
    # All keys, split into training and evaluation, for digits that can be enumerated.
    if digits < 6:
        keys = [str(key) for key in range(10 ** (digits - 1), 10**digits)]
        sides = {side: {k for k in keys if passkey.is_evaluation_key(k) == side} for side in (0, 1)}
        assert sides[0]
        assert sides[1] >= keys_evaluated


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("niah_single_1", 384),
        ("niah_multikey_1", 448),
        ("niah_multivalue", 640),
        ("vt", 768),
        ("fwe", 768),
    ],
)
def test_finds_a_leaked_sample_among_the_rows_of_a_task(kind, length, tokenizer, tmp_path):
    task = task_of(kind)
    tables = sample_tables(tokenizer, tmp_path, 40, length, task)
    rows = training_rows(tokenizer, 200, length, task)
    assert check_contamination("rows", rows, tables)["shared"].to_list() == [0]
    (path,) = tables.values()
    sample = pl.read_parquet(path)[7]
    answer = f" {', '.join(sample['outputs'][0])}."
    leaked = pl.DataFrame({"prompt": sample["prompt"], "answer": [answer]})
    (overlap,) = TrainingRows(pl.concat([rows.select("prompt", "answer"), leaked])).overlaps(path)
    assert (overlap.sample, overlap.row) == (7, 200)
    assert overlap.outputs == sample["outputs"][0].to_list()
    if len(overlap.outputs) > 1:
        partial = leaked.with_columns(answer=pl.lit(f" {overlap.outputs[0]}"))
        assert not list(TrainingRows(partial).overlaps(path))


def test_a_question_of_the_same_set_is_rejected(byte_tokenizer, tmp_path):
    task = task_of("qa_1", path=str(DATA / "squad-small.json"))
    tables = sample_tables(byte_tokenizer, tmp_path, 6, 1500, task)
    with pytest.raises(ValueError, match=r"^finetune_data.rows: contains evaluation samples: "):
        check_contamination("rows", training_rows(byte_tokenizer, 30, 1500, task), tables)


def test_samples_without_a_question_are_matched_by_their_context(tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"index": 0, "input": "One is 17. Which?", "outputs": ["17"], "length": 90}\n'
        '{"index": 1, "input": "One is 18. Which?", "outputs": ["18"], "length": 90}\n'
    )
    task = task_of("ruler_jsonl", path=str(tmp_path / "rows.jsonl"), max_new_tokens=8)
    tables = sample_tables(tokenizer, tmp_path, 2, 128, task)
    rows = pl.DataFrame(
        {"prompt": ["One is 18.  Which?", "One is 19. Which?"], "answer": ["18"] * 2}
    )
    with pytest.raises(
        ValueError, match=r"18 \(row 0, sample 1 of a_task at 128\); remove these r"
    ):
        check_contamination("own", rows, tables)
    assert check_contamination("own", rows[1:], tables)["shared"].to_list() == [0]


def test_error_names_the_first_overlaps(tokenizer, tmp_path):
    tables = sample_tables(tokenizer, tmp_path, 5, 128, task_of("passkey"))
    table = pl.read_parquet(tables["a_task", 128])
    keys = table["outputs"].list.first().to_list()
    prompts = [f"Whatever. {passkey.QUESTION} The pass key is"] * 5
    rows = pl.DataFrame({"prompt": prompts, "answer": [f" {key}" for key in keys]})
    with pytest.raises(ValueError, match="contains evaluation samples") as caught:
        check_contamination("own", rows, tables)
    assert f"samples: {keys[0]} (row 0, sample 0 of a_task at 128); {keys[1]} (" in str(
        caught.value
    )
    assert "and 2 more; remove these rows" in str(caught.value)
    # A longer number is another key, and another question has another answer.
    longer = rows.with_columns(answer=pl.col("answer") + "1")
    assert check_contamination("own", longer, tables)["shared"].sum() == 0
    other = rows.with_columns(prompt=pl.lit("Which number?"))
    assert check_contamination("own", other, tables)["shared"].sum() == 0
