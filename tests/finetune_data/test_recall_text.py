import re
from itertools import islice

import pytest

from needlework.finetune_data.recall_text import recall_text

TELLS = re.compile(r" One of the special magic numbers for (\S+) is: (\d{7})\.")
ASKS = re.compile(
    r" What is the special magic number for (\S+) mentioned in the provided text\? The special"
    r" magic number for (\S+) mentioned in the provided text is: (\d{7})\."
)


def _turns(n: int, recall_fraction: float, seed: int = 1) -> list[str]:
    return list(islice(recall_text(seed, recall_fraction), n))


@pytest.mark.parametrize("recall_fraction", [0, 0.3, 0.6])
def test_every_answer_was_told_before_and_the_share_is_the_one_asked_for(recall_fraction):
    told, asked = {}, 0
    for turn in _turns(3000, recall_fraction):
        if tells := TELLS.fullmatch(turn):
            told[tells[1]] = tells[2]
        else:
            asks = ASKS.fullmatch(turn)
            assert asks[1] == asks[2]
            assert told[asks[1]] == asks[3]
            asked += 1
    assert asked / 3000 == pytest.approx(recall_fraction, abs=0.03)


def test_numbers_are_asked_for_from_every_distance():
    told, near, far = {}, 0, 0
    for i, turn in enumerate(_turns(3000, 0.5)):
        if tells := TELLS.fullmatch(turn):
            told[tells[1]] = i
        else:
            distance = i - told[ASKS.fullmatch(turn)[1]]
            near += distance < 16
            far += distance >= 256
    assert near > 200
    assert far > 200


def test_text_is_told_by_its_seed():
    assert _turns(50, 0.5) == _turns(60, 0.5)[:50]
    assert _turns(50, 0.5) != _turns(50, 0.5, 2)
