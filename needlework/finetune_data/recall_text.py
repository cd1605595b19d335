"""Endless text of numbers told and asked for again: a longer memory foretells more of it."""

from collections.abc import Iterator
from itertools import count
from random import Random

from needlework.tasks.haystacks.haystack import NEEDLE
from needlework.tasks.haystacks.needle_values import draw
from needlework.tasks.haystacks.words import draw_keys
from needlework.tasks.niah import ANSWER_PREFIX_ONE, QUESTION_ONE


def recall_text(seed: int, recall_fraction: float) -> Iterator[str]:
    """Sentences, each with the space that stands before it; nothing that was said is held.

    Each tells a number, as in the needle tasks, or with probability `recall_fraction` asks for one told
    before and answers. The one asked for lies d turns back (if that turn asked too, the one that it
    asked for), d drawn from 1 to all, evenly on a log scale: as many from 1 to 2 turns back as from
    1000 to 2000.
    """
    for turn in count():
        at, asks = turn, False
        while True:
            random = Random(f"{seed} {at}")
            if at == 0 or random.random() >= recall_fraction:
                break
            at, asks = at - min(at, int((at + 1) ** random.random())), True
        (key,), (value,) = draw_keys(random, 1), draw(random, "numbers", 1)
        if asks:
            question = QUESTION_ONE.format(value="number", query=key)
            answer = ANSWER_PREFIX_ONE.format(value="number", query=key)
            yield f" {question}{answer}: {value}."
        else:
            yield " " + NEEDLE.format(values="numbers", key=key, value=value)
