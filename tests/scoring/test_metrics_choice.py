"""Answers to multiple choice."""

import pytest

from needlework.scoring.metrics import METRICS, chosen_letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("D", "D"),
        ("(D)", "D"),
        ("D. The fourth", "D"),
        ("**D**", "D"),
        ("The correct answer is (D).", "D"),
        ("Answer: D", "D"),
        ("The answer is A, no: the answer is D", "D"),
        ("I cannot decide.", None),
        ("A cat sat on it.", None),
        ("", None),
    ],
)
def test_the_chosen_letter(answer: str, letter: str | None):
    assert chosen_letter(answer) == letter
    for metric in ("all", "part", "exact"):
        assert METRICS[metric](answer, ["D"], "choice", "all") == float(letter == "D")
