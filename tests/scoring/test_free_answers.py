import itertools
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from needlework.scoring.free_answers import normalized, overlap, says_only

WORDS = st.lists(
    st.sampled_from(
        ["a", "an", "the", "The", "fig", "figs", "Blue", "and", "it's", "10%", "-", "_"]
    ),
    max_size=7,
)
SENTENCE = WORDS.map(" ".join)


def squads(text):
    """SQuAD's normalize_answer, a step at a time."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.one_of(SENTENCE, st.text(alphabet="aTthe n,.-\u2013\n\u00e9", max_size=12)))
def test_normalized_is_squads(text):
    assert normalized(text) == (squads(text) or text.lower().strip())


@given(SENTENCE, SENTENCE.filter(squads))
def test_one_reference_is_squads_exact_match(answer, reference):
    assert says_only(answer, [reference]) == (squads(answer) == squads(reference))


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
        ("b apple b", ["apple", "b b"], False),  # what is left does not grow together
        ("and Paris", ["Paris"], False),
        ("", ["Paris", "Rome"], False),
    ],
)
def test_several_references_and_nothing_else(answer, references, expected):
    assert says_only(answer, references) is expected


NAMES = ["figs", "blue cheese", "cheese", "two eggs"]


@given(st.permutations(NAMES), st.lists(st.sampled_from([", ", " and ", "; the "]), min_size=3))
def test_every_order_is_right(order, between):
    answer = order[0] + "".join(a + b for a, b in zip(between, order[1:], strict=False))
    assert says_only(answer, NAMES)
    assert not says_only(f"{answer}, ham", NAMES)


def f1(matched, answer, reference):
    if not matched:
        return 0.0
    precision, recall = matched / len(answer), matched / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(left, right):
    """By trying every subsequence, the longest first."""
    for size in range(min(len(left), len(right)), 0, -1):
        theirs = set(itertools.combinations(right, size))
        if any(chosen in theirs for chosen in itertools.combinations(left, size)):
            return size
    return 0


@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3))
def test_overlap_is_its_definition_with_the_best_reference(answer, references):
    ours = re.sub("[^a-z0-9]", " ", answer.lower()).split()
    bags, sequences = [], []
    for reference in references:
        theirs = re.sub("[^a-z0-9]", " ", reference.lower()).split()
        bags.append(f1(sum((Counter(ours) & Counter(theirs)).values()), ours, theirs))
        sequences.append(f1(longest_common_subsequence(ours, theirs), ours, theirs))
    assert overlap(answer, references, "rouge1") == pytest.approx(max(bags), abs=1e-12)
    assert overlap(answer, references, "rougeL") == pytest.approx(max(sequences), abs=1e-12)


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_ascii_is_scored_as_the_library_does_by_itself(answer, reference):
    for rouge in ("rouge1", "rougeL"):
        alone = rouge_scorer.RougeScorer([rouge]).score(reference, answer)[rouge].fmeasure
        assert overlap(answer, [reference], rouge) == alone


def test_letters_beyond_ascii_are_words():
    assert overlap("Это красный дом", ["красный дом"], "rougeL") == pytest.approx(0.8)
    assert overlap("ÉCOLE", ["école"], "rouge1") == 1
    assert overlap("?!", ["?!"], "rouge1") == 0
