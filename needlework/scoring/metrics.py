"""How one answer is scored: RULER's two substring metrics, and a strict one beside them."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

ValueType = Literal["numbers", "words", "uuids"]

_CONTROL = re.compile(r"[\x00-\x1f]")
_VALUES = {
    "numbers": re.compile(r"[0-9]+"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "words": re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*"),
}


def clean(prediction: str) -> str:
    """The answer as RULER reads it: stripped, control characters made newlines, stripped."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Share (0-1) of the references that are case-insensitive substrings (string_match_all)."""
    answer = clean(prediction).lower()
    return sum(reference.lower() in answer for reference in references) / len(references)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference is a case-insensitive substring, else 0 (string_match_part)."""
    answer = clean(prediction).lower()
    return float(any(reference.lower() in answer for reference in references))


def exact(prediction: str, references: Sequence[str], value_type: ValueType) -> float:
    """1 if the first k values of the answer are, as a set, the k values of the references, else 0.

    Values are runs of digits (`numbers`), uuids, or words; where every reference has a hyphen
    (adjective-noun pairs), only hyphenated words count as values. Letter case is ignored. An
    answer that lists many values in the hope of a hit passes the substring metrics and fails here.

    Raises:
        ValueError: for an unknown `value_type`, or a reference without a value of that type.
    """
    if value_type not in _VALUES:
        raise ValueError(f"value_type {value_type!r}: must be one of {', '.join(_VALUES)}")
    pairs = value_type == "words" and all("-" in reference for reference in references)

    def values(text: str) -> list[str]:
        found = _VALUES[value_type].findall(text.lower())
        return [value for value in found if "-" in value] if pairs else found

    expected = []
    for reference in references:
        if not values(reference):
            raise ValueError(f"reference {reference!r}: holds no value of type {value_type}")
        expected += values(reference)
    return float(set(values(clean(prediction))[: len(expected)]) == set(expected))


Metric = Callable[[str, Sequence[str], ValueType], float]

METRICS: dict[str, Metric] = {
    "all": lambda prediction, references, _: match_all(prediction, references),
    "part": lambda prediction, references, _: match_part(prediction, references),
    "exact": exact,
}
"""Every metric by the name of its column, in the order of the score tables."""
