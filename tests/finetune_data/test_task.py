"""Training rows of a task: prompts with answers, none of them an evaluation sample."""

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import TINY

from needlework.config.finetune_data import TaskExamples
from needlework.config.tasks.registry import AnyTask
from needlework.finetune_data.task import make_examples
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.passkey import is_evaluation_key
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

DEPTHS = [0.0, 50.0, 100.0]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TINY, None)


def task(kind, **keys):
    return TypeAdapter(AnyTask).validate_python({"type": kind, **keys})


def make_rows(tokenizer, kind, count, length, seed=42, haystacks=None, **keys):
    config = TaskExamples(task="a_task", examples=count, length=length)
    return make_examples(
        config, tokenizer, seed, task=task(kind, **keys), depths=DEPTHS, haystacks=haystacks or {}
    )


def evaluation_samples(tokenizer, kind, count, length, seed=42):
    sampler = Sampler(
        task(kind), tokenizer, task_name="a_task", length=length, depths=DEPTHS, seed=seed
    )
    return make_samples(sampler, count)


def test_a_row_holds_a_prompt_and_its_answer(tokenizer):
    table = make_rows(tokenizer, "niah_multikey_1", 4, [384, 448])
    for row, length in zip(table.iter_rows(named=True), [384, 448] * 2, strict=True):
        value = row["answer"].removeprefix(" ")
        assert value.isdigit()
        assert f"is: {value}." in row["prompt"]
        assert row["prompt"].endswith("mentioned in the provided text is")
        size = len(tokenizer.encode(row["prompt"]).ids)
        # The length leaves room for the task's longest answer.
        assert length - 128 - 20 < size <= length - 128
        answer = tokenizer.encode(row["answer"], add_special_tokens=False)
        assert row["context_length"] == size + len(answer) + 1
    (row,) = make_rows(tokenizer, "niah", 1, 384, values=2).iter_rows(named=True)
    assert all(f"is: {value}." in row["prompt"] for value in row["answer"][1:].split(", "))
    assert row["answer"].count(",") == 1


def test_rows_do_not_depend_on_their_number(tokenizer):
    many = make_rows(tokenizer, "passkey", 6, [128, 160])
    assert many.head(4).equals(make_rows(tokenizer, "passkey", 4, [128, 160]))
    assert not many.equals(make_rows(tokenizer, "passkey", 6, [128, 160], seed=7))


def test_pass_keys_are_training_keys(tokenizer):
    rows = make_rows(tokenizer, "passkey", 60, 128)
    assert not any(is_evaluation_key(answer[1:]) for answer in rows["answer"])
    keys = evaluation_samples(tokenizer, "passkey", 60, 128)["outputs"].list.first()
    assert all(is_evaluation_key(key) for key in keys)


@pytest.mark.parametrize("kind", ["passkey", "niah_single_1", "niah_multikey_1"])
def test_rows_share_nothing_with_evaluation_samples(tokenizer, kind):
    rows = make_rows(tokenizer, kind, 100, 384)
    samples = evaluation_samples(tokenizer, kind, 100, 384)
    assert set(rows["seed"]).isdisjoint(samples["seed"])
    assert set(rows["prompt"]).isdisjoint(samples["prompt"])
    needles = samples["needles"].explode().struct.unnest()
    assert not any(
        f" for {key} is: {value}." in prompt
        for key, value in needles.select("key", "value").iter_rows()
        for prompt in rows["prompt"]
    )


def test_haystack_is_the_users_text(tokenizer):
    numbers = ["one", "two", "three", "four", "five", "six"]
    sentences = [f"Word number {number}." for number in numbers * 15]
    counts = [len(tokenizer.encode(f" {s}", add_special_tokens=False)) for s in sentences]
    table = pl.DataFrame({"sentence": sentences, "tokens": counts})
    (row,) = make_rows(tokenizer, "niah_multikey_1", 1, 384, haystacks={384: table}).iter_rows(
        named=True
    )
    assert "Word number three." in row["prompt"]


def test_a_length_that_is_too_small_is_rejected(tokenizer):
    with pytest.raises(
        ValueError, match=r"^length: 128 is too small for task a_task; write \d+ or m"
    ):
        make_rows(tokenizer, "niah_multikey_1", 1, 128)
