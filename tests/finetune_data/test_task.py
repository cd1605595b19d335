import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import TINY

from needlework.config.tasks import AnyTask, TaskExamples
from needlework.finetune_data.task import examples
from needlework.tasks.generate import Sampler, samples
from needlework.tasks.passkey import is_evaluation_key
from needlework.tasks.prompts.tokenizer import open_tokenizer

DEPTHS = [0.0, 50.0, 100.0]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TINY, None)


def task(kind, **keys):
    return TypeAdapter(AnyTask).validate_python({"type": kind, **keys})


def made(tokenizer, kind, count, length, seed=42, haystacks=None, **keys):
    config = TaskExamples(task="asked", examples=count, length=length)
    asked = task(kind, **keys)
    return examples(config, tokenizer, seed, task=asked, depths=DEPTHS, haystacks=haystacks or {})


def evaluated(tokenizer, kind, count, length, seed=42):
    sampler = Sampler(
        task(kind), tokenizer, task_name="asked", length=length, depths=DEPTHS, seed=seed
    )
    return samples(sampler, count)


def test_a_row_is_a_prompt_and_its_answer(tokenizer):
    table = made(tokenizer, "niah_multikey_1", 4, [384, 448])
    for row, length in zip(table.iter_rows(named=True), [384, 448] * 2, strict=True):
        value = row["answer"].removeprefix(" ")
        assert value.isdigit()
        assert f"is: {value}." in row["prompt"]
        assert row["prompt"].endswith("mentioned in the provided text is")
        size = len(tokenizer.encode(row["prompt"]).ids)
        # Beside the prompt there is room for the task's longest answer.
        assert length - 128 - 20 < size <= length - 128
        answer = tokenizer.encode(row["answer"], add_special_tokens=False)
        assert row["context_length"] == size + len(answer) + 1
    (row,) = made(tokenizer, "niah", 1, 384, values=2).iter_rows(named=True)
    assert all(f"is: {value}." in row["prompt"] for value in row["answer"][1:].split(", "))
    assert row["answer"].count(",") == 1


def test_rows_do_not_depend_on_how_many_there_are(tokenizer):
    many = made(tokenizer, "passkey", 6, [128, 160])
    assert many.head(4).equals(made(tokenizer, "passkey", 4, [128, 160]))
    assert not many.equals(made(tokenizer, "passkey", 6, [128, 160], seed=7))


def test_pass_keys_are_those_of_training(tokenizer):
    rows = made(tokenizer, "passkey", 60, 128)
    assert not any(is_evaluation_key(answer[1:]) for answer in rows["answer"])
    keys = evaluated(tokenizer, "passkey", 60, 128)["outputs"].list.first()
    assert all(is_evaluation_key(key) for key in keys)


@pytest.mark.parametrize("kind", ["passkey", "niah_single_1", "niah_multikey_1"])
def test_no_row_is_drawn_as_a_sample_is(tokenizer, kind):
    rows, asked = made(tokenizer, kind, 100, 384), evaluated(tokenizer, kind, 100, 384)
    assert set(rows["seed"]).isdisjoint(asked["seed"])
    assert set(rows["prompt"]).isdisjoint(asked["prompt"])
    told = asked["needles"].explode().struct.unnest()
    assert not any(
        f" for {key} is: {value}." in prompt
        for key, value in told.select("key", "value").iter_rows()
        for prompt in rows["prompt"]
    )


def test_a_text_of_the_user_is_the_haystack(tokenizer):
    numbers = ["one", "two", "three", "four", "five", "six"]
    sentences = [f"Word number {number}." for number in numbers * 15]
    counts = [len(tokenizer.encode(f" {s}", add_special_tokens=False)) for s in sentences]
    table = pl.DataFrame({"sentence": sentences, "tokens": counts})
    (row,) = made(tokenizer, "niah_multikey_1", 1, 384, haystacks={384: table}).iter_rows(
        named=True
    )
    assert "Word number three." in row["prompt"]


def test_a_length_that_is_too_small_is_told(tokenizer):
    with pytest.raises(ValueError, match=r"^length: 128 is too small for task asked; set \d+ or m"):
        made(tokenizer, "niah_multikey_1", 1, 128)
