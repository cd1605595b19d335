"""Recall text: answers repeat earlier statements, from every distance."""

import re
from itertools import islice

import pytest

from needlework.finetune_data.recall_text import recall_text

STATEMENT = re.compile(r" One of the special magic numbers for (\S+) is: (\d{7})\.")
QUESTION = re.compile(
    r" What is the special magic number for (\S+) mentioned in the provided text\? The special"
    r" magic number for (\S+) mentioned in the provided text is: (\d{7})\."
)


def _turns(n: int, recall_fraction: float, seed: int = 1) -> list[str]:
    return list(islice(recall_text(seed, recall_fraction), n))


@pytest.mark.parametrize("recall_fraction", [0, 0.3, 0.6])
def test_answers_repeat_earlier_statements_at_the_configured_rate(recall_fraction):
    stated, questions = {}, 0
    for turn in _turns(3000, recall_fraction):
        if statement := STATEMENT.fullmatch(turn):
            stated[statement[1]] = statement[2]
        else:
            question = QUESTION.fullmatch(turn)
            assert question[1] == question[2]
            assert stated[question[1]] == question[3]
            questions += 1
    assert questions / 3000 == pytest.approx(recall_fraction, abs=0.03)


def test_questions_refer_to_every_distance():
    stated_at, near, far = {}, 0, 0
    for i, turn in enumerate(_turns(3000, 0.5)):
        if statement := STATEMENT.fullmatch(turn):
            stated_at[statement[1]] = i
        else:
            distance = i - stated_at[QUESTION.fullmatch(turn)[1]]
            near += distance < 16
            far += distance >= 256
    assert near > 200
    assert far > 200


def test_text_depends_only_on_the_seed():
    assert _turns(50, 0.5) == _turns(60, 0.5)[:50]
    assert _turns(50, 0.5) != _turns(50, 0.5, 2)
