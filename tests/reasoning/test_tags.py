import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.reasoning.tags import without_thought

PARTS = st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "42", "x<"]), max_size=8)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("42", "42"),
        ("", ""),
        ("<think>It is 41, no, 42.</think>\n\n42", "\n\n42"),
        (" \n<think>\nIt is 41, no, ", ""),
        ("It is 41, no.</think> 42", " 42"),  # the prompt had opened the thought
        ("<think>a</think> 41 <think>b</think> 42", " 42"),
        ("<think>a</think> <think>It is 42", ""),
        ("<think>a</think> 42 <think>b", " 42 <think>b"),
        ("It says <think> there: 42", "It says <think> there: 42"),
        ("<think>a</think>", ""),
    ],
)
def test_thought_is_left_out(prediction, answer):
    assert without_thought(prediction) == answer


@given(PARTS.map("".join))
def test_every_answer_is_read_off_from_the_right(prediction):
    start = max(
        (i + 8 for i in range(len(prediction)) if prediction[i : i + 8] == "</think>"), default=0
    )
    rest = list(prediction[start:])
    while rest and rest[0].isspace():
        rest.pop(0)
    never_closed = "".join(rest[:7]) == "<think>"
    assert without_thought(prediction) == ("" if never_closed else prediction[start:])
