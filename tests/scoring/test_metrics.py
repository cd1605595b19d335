"""Metrics of one answer against RULER's definitions and examples."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.scoring.metrics import (
    METRICS,
    clean,
    exact,
    match_all,
    match_part,
    rouge_l,
    token_f1,
)

TEXT = st.text(alphabet="aAbB12- \t\n\x00\x1f\x7fé", max_size=12)
REFERENCES = st.lists(st.text(alphabet="aAbB12 \n", min_size=1, max_size=3), min_size=1, max_size=4)


def clean_by_hand(prediction: str) -> str:
    """RULER's cleaning of an answer, character by character."""
    characters = list(prediction)
    while characters and characters[0].isspace():
        characters.pop(0)
    while characters and characters[-1].isspace():
        characters.pop()
    return "".join("\n" if ord(c) < 32 else c for c in characters).strip()


def is_substring(reference: str, answer: str) -> bool:
    reference, answer = reference.lower(), answer.lower()
    return any(answer[i : i + len(reference)] == reference for i in range(len(answer)))


@given(TEXT, REFERENCES)
def test_substring_metrics_equal_their_definition(prediction, references):
    answer = clean_by_hand(prediction)
    hits = [1.0 if is_substring(reference, answer) else 0.0 for reference in references]
    assert clean(prediction) == answer
    assert match_all(prediction, references) == sum(hits) / len(hits)
    assert match_part(prediction, references) == max(hits)


def ruler_clean(prediction: str) -> str:
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()


def string_match_all(predictions, references):
    """RULER's string_match_all of a task, in percent."""
    total = 0
    for prediction, expected in zip(predictions, references, strict=True):
        hits = [1.0 if r.lower() in prediction.lower() else 0.0 for r in expected]
        total += sum(hits) / len(expected)
    return round(total / len(predictions) * 100, 2)


def string_match_part(predictions, references):
    """RULER's string_match_part of a task, in percent."""
    total = 0
    for prediction, expected in zip(predictions, references, strict=True):
        total += max(1.0 if r.lower() in prediction.lower() else 0.0 for r in expected)
    return round(total / len(predictions) * 100, 2)


@given(st.lists(st.tuples(TEXT, REFERENCES), min_size=1, max_size=60))
def test_means_of_substring_metrics_equal_ruler_exactly(answers):
    predictions, references = zip(*answers, strict=True)
    cleaned = [ruler_clean(prediction) for prediction in predictions]
    for metric, ruler in ((match_all, string_match_all), (match_part, string_match_part)):
        scores = [metric(p, r) for p, r in zip(predictions, references, strict=True)]
        assert round(sum(scores) / len(scores) * 100, 2) == ruler(cleaned, references)


def test_part_is_not_divided_by_the_number_of_references():
    assert match_part("In France.", ["France", "french", "Paris"]) == 1


def test_a_control_character_separates_values():
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


@pytest.mark.parametrize(
    ("prediction", "references", "mode", "score"),
    [
        ("The Denver Broncos.", ["Denver Broncos", "Broncos"], "part", 1),
        ("Denver Broncos, in 2016", ["Denver Broncos", "Broncos"], "part", 0),
        ("broncos", ["Denver Broncos", "Broncos"], "part", 1),
        ("", ["The The"], "part", 0),
        ("the the", ["The The"], "part", 1),
        ("cheese and figs", ["figs", "cheese"], "all", 1),
        ("cheese", ["figs", "cheese"], "part", 1),
        ("7 or 8", ["8", "7"], "part", 1),
        ("9 or 8", ["8", "7"], "part", 0),
    ],
)
def test_exact_of_alternatives_and_of_texts(prediction, references, mode, score):
    value_type = "numbers" if references[0].isdigit() else "text"
    assert exact(prediction, references, value_type, mode) == score


def test_a_text_is_cleaned_before_scoring():
    assert exact(" \x00a\tfig\x1f ", ["fig"], "text") == 1
    assert rouge_l("blue\x00fig", ["blue fig"], "text") == 1


def test_references_of_a_text_are_joined_or_alternatives():
    references = ["figs", "blue cheese"]
    assert token_f1("blue cheese", references, "text", "part") == 1
    assert token_f1("blue cheese", references, "text") == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1("cheese figs blue", references, "text") == 1
    assert rouge_l("cheese figs blue", references, "text") == pytest.approx(2 * 2 / (3 + 3))
    assert rouge_l("12", ["12"], "numbers") is None
    assert token_f1("ab", ["ab"], "words") is None


def test_exact_rejects_unknown_types_and_wrong_references():
    with pytest.raises(ValueError, match="value_type 'dates': must be one of numbers"):
        exact("1", ["1"], "dates")
    with pytest.raises(ValueError, match="reference 'abc': contains no value of type numbers"):
        exact("1", ["abc"], "numbers")


def test_metrics_by_name():
    def scores(value_type, mode):
        return {name: of("1 3", ["1", "2"], value_type, mode) for name, of in METRICS.items()}

    values = {"all": 0.5, "part": 1.0, "exact": 0.0, "rouge_l": None, "token_f1": None}
    assert scores("numbers", "all") == values
    assert scores("numbers", "part") == values | {"exact": 1.0}
    overlap = {"rouge_l": pytest.approx(2 / 3), "token_f1": pytest.approx(2 / 3)}
    assert scores("text", "part") == values | overlap
