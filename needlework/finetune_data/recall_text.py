"""Endless text that states numbers and asks for them again, so that long memory predicts it."""

from collections.abc import Iterator
from itertools import count
from random import Random

from needlework.tasks.haystacks.haystack import NEEDLE
from needlework.tasks.haystacks.needle_values import draw_values
from needlework.tasks.haystacks.words import draw_keys
from needlework.tasks.niah import ANSWER_PREFIX_ONE, QUESTION_ONE


def recall_text(seed: int, recall_fraction: float) -> Iterator[str]:
    """Yield sentences, each with a leading space, in constant memory.

    A turn states a new number as a needle task does. With probability `recall_fraction` it
    instead asks for an earlier number and answers. The distance d in turns is drawn from 1 to the
    number of turns so far, log-uniformly: d falls as often between 1 and 2 as between 1000 and
    2000. If turn i - d is itself a question, the one it asks for is meant.
    """
    for turn in count():
        source, is_question = turn, False
        while True:
            random = Random(f"{seed} {source}")
            if source == 0 or random.random() >= recall_fraction:
                break
            source -= min(source, int((source + 1) ** random.random()))
            is_question = True
        (key,), (value,) = draw_keys(random, 1), draw_values(random, "numbers", 1)
        if is_question:
            question = QUESTION_ONE.format(value="number", query=key)
            answer = ANSWER_PREFIX_ONE.format(value="number", query=key)
            yield f" {question}{answer}: {value}."
        else:
            yield " " + NEEDLE.format(values="numbers", key=key, value=value)
