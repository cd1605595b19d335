"""Free-form answers against references: SQuAD's exact match, ROUGE."""

import itertools
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from needlework.scoring.free_answers import consists_of, normalize, rouge_f1

WORDS = st.lists(
    st.sampled_from(
        ["a", "an", "the", "The", "fig", "figs", "Blue", "and", "it's", "10%", "-", "_"]
    ),
    max_size=7,
)
SENTENCE = WORDS.map(" ".join)


def squad_normalize(text):
    """SQuAD's normalize_answer, step by step."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.one_of(SENTENCE, st.text(alphabet="aTthe n,.-\u2013\n\u00e9", max_size=12)))
def test_normalize_equals_squad(text):
    assert normalize(text) == (squad_normalize(text) or text.lower().strip())


@given(SENTENCE, SENTENCE.filter(squad_normalize))
def test_one_reference_is_squad_exact_match(answer, reference):
    assert consists_of(answer, [reference]) == (
        squad_normalize(answer) == squad_normalize(reference)
    )


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("red car, blue bus", ["blue bus", "red car"], True),
        ("A red car and the blue bus!", ["blue bus", "red car"], True),
        ("red bus, blue car", ["blue bus", "red car"], False),
        ("red car", ["blue bus", "red car"], False),
        ("red car, blue bus, green van", ["blue bus", "red car"], False),
        ("red car, red car, blue bus", ["blue bus", "red car"], False),
        ("car, red car", ["car", "red car"], True),
        ("red car", ["car", "red car"], False),
        ("red, car", ["car red", "x"], False),
        ("b apple b", ["apple", "b b"], False),  # the rest is not joined
        ("and Paris", ["Paris"], False),
        ("", ["Paris", "Rome"], False),
    ],
)
def test_several_references_and_nothing_else(answer, references, expected):
    assert consists_of(answer, references) is expected


NAMES = ["figs", "blue cheese", "cheese", "two eggs"]


@given(st.permutations(NAMES), st.lists(st.sampled_from([", ", " and ", "; the "]), min_size=3))
def test_references_may_come_in_any_order(order, between):
    answer = order[0] + "".join(a + b for a, b in zip(between, order[1:], strict=False))
    assert consists_of(answer, NAMES)
    assert not consists_of(f"{answer}, ham", NAMES)


def f1(matched, answer, reference):
    if not matched:
        return 0.0
    precision, recall = matched / len(answer), matched / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(left, right):
    """Try every subsequence, the longest first."""
    for size in range(min(len(left), len(right)), 0, -1):
        theirs = set(itertools.combinations(right, size))
        if any(chosen in theirs for chosen in itertools.combinations(left, size)):
            return size
    return 0


@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3))
def test_rouge_equals_its_definition_with_the_best_reference(answer, references):
    ours = re.sub("[^a-z0-9]", " ", answer.lower()).split()
    bags, sequences = [], []
    for reference in references:
        theirs = re.sub("[^a-z0-9]", " ", reference.lower()).split()
        bags.append(f1(sum((Counter(ours) & Counter(theirs)).values()), ours, theirs))
        sequences.append(f1(longest_common_subsequence(ours, theirs), ours, theirs))
    assert rouge_f1(answer, references, "rouge1") == pytest.approx(max(bags), abs=1e-12)
    assert rouge_f1(answer, references, "rougeL") == pytest.approx(max(sequences), abs=1e-12)


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_ascii_text_is_scored_as_by_the_library_alone(answer, reference):
    for rouge in ("rouge1", "rougeL"):
        alone = rouge_scorer.RougeScorer([rouge]).score(reference, answer)[rouge].fmeasure
        assert rouge_f1(answer, [reference], rouge) == alone


def test_non_ascii_letters_are_words():
    assert rouge_f1("Это красный дом", ["красный дом"], "rougeL") == pytest.approx(0.8)
    assert rouge_f1("ÉCOLE", ["école"], "rouge1") == 1
    assert rouge_f1("?!", ["?!"], "rouge1") == 0
