import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.scoring.metrics import METRICS, clean, exact, match_all, match_part

TEXT = st.text(alphabet="aAbB12- \t\n\x00\x1f\x7fé", max_size=12)
REFERENCES = st.lists(st.text(alphabet="aAbB12 \n", min_size=1, max_size=3), min_size=1, max_size=4)


def by_hand(prediction: str) -> str:
    """RULER's reading of an answer, a character at a time."""
    characters = list(prediction)
    while characters and characters[0].isspace():
        characters.pop(0)
    while characters and characters[-1].isspace():
        characters.pop()
    return "".join("\n" if ord(c) < 32 else c for c in characters).strip()


def found(reference: str, answer: str) -> bool:
    reference, answer = reference.lower(), answer.lower()
    return any(answer[i : i + len(reference)] == reference for i in range(len(answer)))


@given(TEXT, REFERENCES)
def test_substring_metrics_equal_their_definition(prediction, references):
    answer = by_hand(prediction)
    hits = [1.0 if found(reference, answer) else 0.0 for reference in references]
    assert clean(prediction) == answer
    assert match_all(prediction, references) == sum(hits) / len(hits)
    assert match_part(prediction, references) == max(hits)


def test_a_control_character_separates_what_it_stood_between():
    assert match_all("12\x0034", ["1234"]) == 0
    assert match_all("12\x0034", ["12\n34"]) == 1
    assert clean("\x00 a \x01") == "a"


@pytest.mark.parametrize(
    ("prediction", "references", "value_type", "score"),
    [
        ("12345.", ["12345"], "numbers", 1),
        ("12345 The pass key is 99999", ["12345"], "numbers", 1),
        ("11111 22222 12345", ["12345"], "numbers", 0),  # match_all gives 1
        ("912345", ["12345"], "numbers", 0),  # match_all gives 1
        ("012345", ["12345"], "numbers", 0),
        ("2 and 1", ["1", "2"], "numbers", 1),
        ("2, 2 and 1", ["1", "2"], "numbers", 0),
        ("1", ["1", "2"], "numbers", 0),
        ("", ["1"], "numbers", 0),
        ("None of them.", ["1"], "numbers", 0),
        (
            "It is 0A5E1B2C-1111-4222-8333-444455556666",
            ["0a5e1b2c-1111-4222-8333-444455556666"],
            "uuids",
            1,
        ),
        ("0a5e1b2c-1111-4222-8333", ["0a5e1b2c-1111-4222-8333-444455556666"], "uuids", 0),
        ("The word is Quick-Fox, surely.", ["quick-fox"], "words", 1),
        ("slow-dog quick-fox", ["quick-fox"], "words", 0),
        ("old-fashioned-t-shirt", ["old-fashioned-t-shirt"], "words", 1),
        ("XAB YCD", ["yCD", "XAB"], "words", 1),
        ("1. apple 2. pear", ["pear", "apple"], "words", 1),
        ("the apple", ["apple"], "words", 0),
        ("ice cream", ["ice cream"], "words", 1),
    ],
)
def test_exact(prediction, references, value_type, score):
    assert exact(prediction, references, value_type) == score


@given(TEXT, st.lists(st.integers(0, 99).map(str), min_size=1, max_size=3, unique=True))
def test_an_exact_answer_also_passes_the_substring_metric(prediction, references):
    if exact(prediction, references, "numbers"):
        assert match_all(prediction, references) == 1


def test_exact_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="value_type 'dates': must be one of numbers"):
        exact("1", ["1"], "dates")
    with pytest.raises(ValueError, match="reference 'abc': holds no value of type numbers"):
        exact("1", ["abc"], "numbers")


def test_metrics_by_name():
    scores = {name: metric("1 3", ["1", "2"], "numbers") for name, metric in METRICS.items()}
    assert scores == {"all": 0.5, "part": 1.0, "exact": 0.0}
