"""Answers that occur in the context outside the text that states them, by task."""

import logging
import re

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import DATA

from needlework.config.tasks.registry import AnyTask
from needlework.tasks.generate import Sampler, make_samples

QA = {"type": "qa", "path": str(DATA / "squad-small.json")}
ENTITLED = {"type": "qa", "path": str(DATA / "hotpot-small.json"), "format": "hotpotqa"}


def sampler(tokenizer, task: dict, length: int = 1500, haystack=None) -> Sampler:
    task = TypeAdapter(AnyTask).validate_python(task)
    return Sampler(
        task, tokenizer, task_name="t", length=length, depths=[50.0], seed=1, haystack=haystack
    )


def words(answer: str, text: str) -> int:
    """Occurrences as whole words, by a scan over every position."""
    text, answer = f" {text.lower()} ", answer.lower()
    starts = [i for i in range(len(text)) if text.startswith(answer, i)]
    ends = [i + len(answer) for i in starts]
    return sum(
        not re.match(r"\w", text[i - 1]) and not re.match(r"\w", text[j])
        for i, j in zip(starts, ends, strict=True)
    )


def test_a_key_in_the_filler_is_counted(tokenizer, caplog: pytest.LogCaptureFixture):
    task = {"type": "passkey", "digits": 1, "filler": "1 2 3 4 5 6 7 8 9 are digits."}
    refused = sampler(tokenizer, task | {"answers_in_haystack": "refuse"}, 400)
    message = r"outside its needle; write another filler, or more digits, or answers_in_haystack"
    with pytest.raises(ValueError, match=message):
        refused.sample(0)
    with caplog.at_level(logging.WARNING):
        rows = make_samples(sampler(tokenizer, task, 400), 3)
    row = rows.row(0, named=True)
    (key,) = row["outputs"]
    count = row["context"].count(key) - 2
    assert f"the answer '{key}' occurs {count} times in the context at 400" in caplog.text
    assert "3 of 3 samples at 400 have an answer in the context" in caplog.text
    assert not sampler(tokenizer, {"type": "passkey", "shots": 3}, 400).samples_with_answers


def test_a_variable_in_the_text_is_counted(tokenizer):
    names = sampler(tokenizer, {"type": "vt", "haystack": "mine"}, 2000, text("Nothing here."))
    name = names.sample(0)["outputs"][2]
    again = text(f"They call it {name.lower()}.")
    task = {"type": "vt", "haystack": "mine", "answers_in_haystack": "refuse"}
    with pytest.raises(ValueError, match=rf"the answer '{name}' occurs \d+ times"):
        sampler(tokenizer, task, 2000, again).sample(0)
    assert not names.samples_with_answers


def text(sentence: str) -> pl.DataFrame:
    return pl.DataFrame({"sentence": [sentence] * 300, "tokens": [12] * 300})


@pytest.mark.parametrize("task", [QA, ENTITLED])
def test_answers_in_other_documents_are_counted_and_left_out(byte_tokenizer, task):
    length, count = 5000, 8
    warned = sampler(byte_tokenizer, task, length)
    rows = make_samples(warned, count)
    hits = sum(any(elsewhere(row).values()) for row in rows.iter_rows(named=True))
    assert 0 < hits == warned.samples_with_answers
    excluded = sampler(byte_tokenizer, task | {"answers_in_haystack": "exclude"}, length)
    for row in make_samples(excluded, count).iter_rows(named=True):
        assert not any(elsewhere(row).values())
    assert not excluded.samples_with_answers
    refused = sampler(byte_tokenizer, task | {"answers_in_haystack": "refuse"}, length)
    with pytest.raises(ValueError, match="write answers_in_haystack: exclude, or answers_in_hays"):
        make_samples(refused, count)


def elsewhere(row: dict) -> dict[str, int]:
    """Answers that gold documents state -> how often other documents do."""
    documents = re.split(r"Document \d+:\n", row["context"])[1:]
    numbers = [int(needle["key"].split()[1]) - 1 for needle in row["needles"]]
    gold = [documents[i] for i in numbers]
    others = [text for i, text in enumerate(documents) if i not in numbers]
    return {
        answer: sum(words(answer, text) for text in others)
        for answer in row["outputs"]
        if any(words(answer, text) for text in gold)
    }


@pytest.mark.parametrize("kind", ["cwe", "fwe"])
def test_lists_of_words_state_their_answers_by_construction(kind):
    with pytest.raises(ValueError, match="answers_in_haystack"):
        TypeAdapter(AnyTask).validate_python({"type": kind, "answers_in_haystack": "warn"})
