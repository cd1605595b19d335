"""Passkey samples and training rows."""

import re
from random import Random

import polars as pl
import pytest

from needlework.config.finetune_data import PasskeyExamples
from needlework.config.tasks.passkey import Passkey
from needlework.finetune_data.passkey import make_examples
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.passkey import draw_key, is_evaluation_key

pytestmark = pytest.mark.slow


def test_training_and_evaluation_keys_are_disjoint():
    random = Random(0)
    for digits in range(1, 21):
        sides = {
            evaluation: {draw_key(random, digits, evaluation=evaluation) for _ in range(300)}
            for evaluation in (True, False)
        }
        assert sides[True]
        assert sides[False]
        assert not sides[True] & sides[False]
        for key in sides[True] | sides[False]:
            assert len(key) == digits
            assert key[0] != "0"


def test_half_of_the_keys_are_for_evaluation():
    evaluation = sum(is_evaluation_key(str(key)) for key in range(1000, 10000))
    assert abs(evaluation / 9000 - 0.5) < 0.03


def test_training_rows_never_use_a_key_of_the_samples(byte_tokenizer):
    config = PasskeyExamples(examples=400, length=128, digits=[3])
    rows = make_examples(config, byte_tokenizer, seed=1)
    sampler = Sampler(
        Passkey(digits=3, shots=2), byte_tokenizer, task_name="t", length=400, depths=[0.0], seed=1
    )
    table = make_samples(sampler, 400)
    shown = table["context"].str.extract_all(r"pass key is \d+\. Remember").explode()
    trained = set(rows["answer"].str.strip_chars())
    evaluated = set(table["outputs"].explode())
    assert len(trained) > 150
    assert len(evaluated) > 150
    assert not trained & evaluated
    assert len(shown) == 1200
    assert not trained & set(shown.str.extract(r"(\d+)"))


def test_training_rows_are_consistent(tokenizer):
    config = PasskeyExamples(examples=60, length=300, digits=[3, 4, 7], depths=[0, 30, 60, 100])
    rows = make_examples(config, tokenizer, seed=1)
    assert rows.columns == [
        "prompt",
        "answer",
        "context_length",
        "depth_percent",
        "num_digits",
        "seed",
    ]
    assert rows.group_by("num_digits", "depth_percent").len()["len"].to_list() == [5] * 12
    for row in rows.iter_rows(named=True):
        key = row["answer"].removeprefix(" ")
        assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in row["prompt"]
        assert row["prompt"].endswith("What is the pass key? The pass key is")
        assert len(key) == row["num_digits"]
        # Plus the end-of-text token.
        ids = prompt_tokenizer(tokenizer).encode(row["prompt"] + row["answer"]).ids
        assert row["context_length"] == len(ids) + 1
        assert 296 <= row["context_length"] <= 300
    assert rows["seed"].n_unique() == 60


def test_training_rows_do_not_depend_on_their_number(byte_tokenizer):
    few = make_examples(PasskeyExamples(examples=5, length=200), byte_tokenizer, seed=1)
    many = make_examples(PasskeyExamples(examples=20, length=200), byte_tokenizer, seed=1)
    assert few.equals(many.head(5))
    assert not few.equals(make_examples(PasskeyExamples(examples=5, length=200), byte_tokenizer, 2))


def test_a_row_length_that_is_too_small_names_the_smallest(byte_tokenizer):
    config = PasskeyExamples(examples=30, length=64, digits=[20])
    with pytest.raises(ValueError, match=r"length 64 is too small; write \d+ or more$") as error:
        make_examples(config, byte_tokenizer, seed=1)
    smallest = int(str(error.value).split()[-3])
    make_examples(config.model_copy(update={"length": smallest}), byte_tokenizer, seed=1)
    with pytest.raises(ValueError, match="too small"):
        make_examples(config.model_copy(update={"length": smallest - 1}), byte_tokenizer, seed=1)


def test_lengths_alternate(byte_tokenizer):
    config = PasskeyExamples(examples=9, length=[200, 300, 400])
    rows = make_examples(config, byte_tokenizer, seed=1)
    assert (rows["context_length"] <= pl.Series([200, 300, 400] * 3)).all()
    for offset, length in enumerate(config.length):
        alone = make_examples(PasskeyExamples(examples=3, length=length), byte_tokenizer, seed=1)
        assert rows.gather_every(3, offset).equals(alone)


@pytest.mark.parametrize("shots", [1, 3])
def test_worked_examples_precede_the_prompt_with_other_keys(tokenizer, shots):
    task = Passkey(digits=2, shots=shots)
    sampler = Sampler(task, tokenizer, task_name="t", length=900, depths=[0.0, 60.0], seed=1)
    for row in make_samples(sampler, 30).iter_rows(named=True):
        *examples, last = row["context"].split("\n\n")
        assert len(examples) == shots
        for example in examples:
            key = re.search(r"\nThe pass key is (\d\d)\. Remember it\. \1 is", example)[1]
            assert example.endswith(f"\nWhat is the pass key? The pass key is {key}.")
            assert key != row["outputs"][0]
        assert f"The pass key is {row['outputs'][0]}. Remember" in last


def test_filler_can_be_replaced(byte_tokenizer):
    task = Passkey(filler="Rain falls.\n Snow  too.")
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=500, depths=[50.0], seed=1)
    lines = sampler.sample(0)["context"].splitlines()
    assert len(lines) == 4
    assert ("Rain falls. Snow too. " * 99).startswith(lines[3])
    assert len(lines[3]) > 200
