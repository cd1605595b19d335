import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.config.models.thought import ThoughtFormat
from needlework.reasoning.formats import FORMATS, outcome, strip_reasoning

PARTS = st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "42", "x<"]), max_size=8)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("42", "42"),
        ("", ""),
        ("<think>It is 41, no, 42.</think>\n\n42", "\n\n42"),
        (" \n<think>\nIt is 41, no, ", ""),
        ("It is 41, no.</think> 42", " 42"),  # the prompt opened the reasoning
        ("<think>a</think> 41 <think>b</think> 42", " 42"),
        ("<think>a</think> <think>It is 42", ""),
        ("<think>a</think> 42 <think>b", " 42 <think>b"),
        ("It has <think> here: 42", "It has <think> here: 42"),
        ("<think>a</think>", ""),
    ],
)
def test_reasoning_is_removed(prediction, answer):
    assert strip_reasoning(prediction) == answer


@given(PARTS.map("".join))
def test_the_answer_follows_the_last_closing_tag(prediction):
    start = max(
        (i + 8 for i in range(len(prediction)) if prediction[i : i + 8] == "</think>"), default=0
    )
    rest = list(prediction[start:])
    while rest and rest[0].isspace():
        rest.pop(0)
    never_closed = "".join(rest[:7]) == "<think>"
    assert strip_reasoning(prediction) == ("" if never_closed else prediction[start:])


@pytest.mark.parametrize("thought", FORMATS, ids=lambda thought: thought.open)
def test_every_format_is_removed(thought: ThoughtFormat):
    closed = f"{thought.open}a 1234567?{thought.close}{thought.final}2222222"
    assert strip_reasoning(closed) == "2222222"
    assert outcome(closed) == "answer"
    assert strip_reasoning(f"{thought.open}a 1234567?") == ""
    assert outcome(f"{thought.open}a 1234567?") == "truncated_thought"


def test_a_format_of_ones_own_replaces_the_known_ones():
    own = ThoughtFormat(open="<<", close=">>")
    assert strip_reasoning("<<1234567?>>2222222", own) == "2222222"
    assert strip_reasoning("<think>1</think>2", own) == "<think>1</think>2"
    assert outcome("<<1234567?", own) == "truncated_thought"


@pytest.mark.parametrize("prediction", ["", " \n", "<think>a</think>"])
def test_an_empty_answer_is_its_own_outcome(prediction: str):
    assert outcome(prediction) == "empty"
