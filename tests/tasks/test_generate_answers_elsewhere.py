"""Answers that occur in the haystack outside their needle."""

import logging

import pytest

from needlework.config.tasks.needles import FreeNeedle, Needles
from needlework.tasks.generate import Sampler, make_samples


def sampler(tokenizer, answer: str, **settings) -> Sampler:
    needle = FreeNeedle(text=f"The red door opens with {answer}.", answer=answer)
    task = Needles(haystack="noise", needles=[needle], question="What opens it?", **settings)
    return Sampler(task, tokenizer, task_name="t", length=512, depths=[50.0], seed=1)


def test_an_answer_in_the_haystack_is_counted(tokenizer, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        warned = make_samples(sampler(tokenizer, "grass"), 2)
    assert caplog.text.count("the answer 'grass' occurs ") == 1
    message = (
        r"tasks\.t: the answer 'grass' occurs \d+ times in the context at 512 outside its needle"
    )
    with pytest.raises(ValueError, match=message):
        make_samples(sampler(tokenizer, "grass", answers_in_haystack="refuse"), 2)
    assert len(warned) == 2


def test_the_check_does_not_change_samples(tokenizer, caplog: pytest.LogCaptureFixture):
    refused = make_samples(sampler(tokenizer, "a song", answers_in_haystack="refuse"), 2)
    assert refused.equals(make_samples(sampler(tokenizer, "a song"), 2))
    assert not caplog.text
