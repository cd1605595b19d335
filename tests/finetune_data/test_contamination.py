"""What is evaluated is not trained on: proved for each kind of rows, and refused where it is."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import DATA
from support.toy_tokenizers import TINY

from needlework.config.tasks import AnyTask, PasskeyExamples, TaskExamples
from needlework.finetune_data.contamination import TrainingRows, check
from needlework.finetune_data.passkey import examples as passkey_rows
from needlework.finetune_data.task import examples as task_rows
from needlework.tasks import passkey
from needlework.tasks.generate import Sampler, samples
from needlework.tasks.prompts.tokenizer import open_tokenizer

DEPTHS = [0.0, 50.0, 100.0]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TINY)


def task_of(kind: str, **keys):
    return TypeAdapter(AnyTask).validate_python({"type": kind, **keys})


def evaluated(tokenizer, folder: Path, count: int, length: int, task, name="asked") -> dict:
    sampler = Sampler(task, tokenizer, task_name=name, length=length, depths=DEPTHS, seed=1)
    path = folder / f"{name}-{length}.parquet"
    samples(sampler, count).write_parquet(path)
    return {(name, length): str(path)}


def trained(tokenizer, count: int, length: int, task) -> pl.DataFrame:
    config = TaskExamples(task="asked", examples=count, length=length)
    return task_rows(config, tokenizer, 1, task=task, depths=DEPTHS, haystacks={})


@pytest.mark.parametrize("digits", range(1, 8))
def test_pass_keys_are_apart_at_any_number_of_digits(digits, tokenizer, tmp_path):
    task = task_of("passkey", digits=digits)
    found = evaluated(tokenizer, tmp_path, 150, 128, task)
    asked = set(pl.read_parquet(found["asked", 128])["outputs"].explode())
    config = PasskeyExamples(examples=300, length=128, digits=[digits])
    for rows in (
        passkey_rows(config, tokenizer, 1),
        trained(tokenizer, 150, 128, task),
    ):
        assert asked.isdisjoint(answer.strip() for answer in rows["answer"])
        assert check("keys", rows, found).rows() == [("keys", "asked", 128, 150, 0)]
    # Every key there is, by either side, for as many digits as can be counted.
    if digits < 6:
        keys = [str(key) for key in range(10 ** (digits - 1), 10**digits)]
        sides = {side: {k for k in keys if passkey.is_evaluation_key(k) == side} for side in (0, 1)}
        assert sides[0]
        assert sides[1] >= asked


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
def test_rows_of_a_task_are_apart_and_its_samples_are_not(kind, length, tokenizer, tmp_path):
    task = task_of(kind)
    found = evaluated(tokenizer, tmp_path, 40, length, task)
    rows = trained(tokenizer, 200, length, task)
    assert check("rows", rows, found)["shared"].to_list() == [0]
    (path,) = found.values()
    sample = pl.read_parquet(path)[7]
    answer = f" {', '.join(sample['outputs'][0])}."
    leaked = pl.DataFrame({"prompt": sample["prompt"], "answer": [answer]})
    (told,) = TrainingRows(pl.concat([rows.select("prompt", "answer"), leaked])).shared(path)
    assert (told.sample, told.row) == (7, 200)
    assert told.outputs == sample["outputs"][0].to_list()
    if len(told.outputs) > 1:
        partly = leaked.with_columns(answer=pl.lit(f" {told.outputs[0]}"))
        assert not list(TrainingRows(partly).shared(path))


def test_a_question_of_the_same_set_is_refused(byte_tokenizer, tmp_path):
    task = task_of("qa_1", path=str(DATA / "squad-small.json"))
    found = evaluated(byte_tokenizer, tmp_path, 6, 1500, task)
    with pytest.raises(ValueError, match=r"^finetune_data.rows: trains on what is evaluated: "):
        check("rows", trained(byte_tokenizer, 30, 1500, task), found)


def test_samples_made_elsewhere_are_their_own_question(tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"index": 0, "input": "One is 17. Which?", "outputs": ["17"], "length": 90}\n'
        '{"index": 1, "input": "One is 18. Which?", "outputs": ["18"], "length": 90}\n'
    )
    task = task_of("ruler_jsonl", path=str(tmp_path / "rows.jsonl"), max_new_tokens=8)
    found = evaluated(tokenizer, tmp_path, 2, 128, task)
    rows = pl.DataFrame(
        {"prompt": ["One is 18.  Which?", "One is 19. Which?"], "answer": ["18"] * 2}
    )
    with pytest.raises(
        ValueError, match=r"18 \(row 0, sample 1 of asked at 128\); take those rows"
    ):
        check("own", rows, found)
    assert check("own", rows[1:], found)["shared"].to_list() == [0]


def test_the_first_that_are_shared_are_named(tokenizer, tmp_path):
    found = evaluated(tokenizer, tmp_path, 5, 128, task_of("passkey"))
    table = pl.read_parquet(found["asked", 128])
    keys = table["outputs"].list.first().to_list()
    prompts = [f"Whatever. {passkey.QUESTION} The pass key is"] * 5
    rows = pl.DataFrame({"prompt": prompts, "answer": [f" {key}" for key in keys]})
    with pytest.raises(ValueError, match="trains on what is evaluated") as caught:
        check("own", rows, found)
    assert f"evaluated: {keys[0]} (row 0, sample 0 of asked at 128); {keys[1]} (" in str(
        caught.value
    )
    assert "and 2 more; take those rows out" in str(caught.value)
    # A longer number is another key, and another question another thing.
    longer = rows.with_columns(answer=pl.col("answer") + "1")
    assert check("own", longer, found)["shared"].sum() == 0
    other = rows.with_columns(prompt=pl.lit("Which number?"))
    assert check("own", other, found)["shared"].sum() == 0
