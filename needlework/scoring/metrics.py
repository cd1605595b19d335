"""How one answer is scored: RULER's two substring metrics, and stricter ones beside them."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from needlework.scoring.free_answers import overlap, says_only

ValueType = Literal["numbers", "words", "uuids", "text"]
EvaluationJob = Literal["all", "part"]
"""What the references are: answers that are all asked for, or alternatives of one answer."""

_CONTROL = re.compile(r"[\x00-\x1f]")
_VALUES = {
    "numbers": re.compile(r"[0-9]+"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "words": re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*"),
}


def clean(prediction: str) -> str:
    """The answer as RULER reads it: stripped, control characters made newlines, stripped."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def found(prediction: str, references: Sequence[str]) -> list[bool]:
    """Of each reference, whether it is a case-insensitive substring of the answer."""
    answer = clean(prediction).lower()
    return [reference.lower() in answer for reference in references]


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Share (0-1) of the references that are found (string_match_all)."""
    return sum(found(prediction, references)) / len(references)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference is found, else 0 (string_match_part)."""
    return float(any(found(prediction, references)))


def exact(
    prediction: str, references: Sequence[str], value_type: ValueType, asked: EvaluationJob = "all"
) -> float:
    """1 if the answer begins with the references' values, as a set, else 0.

    Values are runs of digits (`numbers`), uuids, or words; where every reference has a hyphen
    (adjective-noun pairs), only hyphenated words count as values. Letter case is ignored. The
    first k values of the answer must be the k values of the references: an answer that lists many
    in the hope of a hit passes the substring metrics and fails here. A `text` must be the
    references and nothing else (`free_answers.says_only`). Of alternatives one is enough.

    Raises:
        ValueError: for an unknown `value_type`, or a reference without a value of that type.
    """
    if value_type not in get_args(ValueType):
        raise ValueError(
            f"value_type {value_type!r}: must be one of {', '.join(get_args(ValueType))}"
        )
    answer = clean(prediction)
    wanted = [references] if asked == "all" else [[reference] for reference in references]
    if value_type == "text":
        return float(any(says_only(answer, group) for group in wanted))
    return float(any(_begins_with(answer, group, value_type) for group in wanted))


def _begins_with(answer: str, references: Sequence[str], value_type: ValueType) -> bool:
    pairs = value_type == "words" and all("-" in reference for reference in references)

    def values(text: str) -> list[str]:
        found = _VALUES[value_type].findall(text.lower())
        return [value for value in found if "-" in value] if pairs else found

    expected = []
    for reference in references:
        if not values(reference):
            raise ValueError(f"reference {reference!r}: holds no value of type {value_type}")
        expected += values(reference)
    return set(values(answer)[: len(expected)]) == set(expected)


def rouge_l(
    prediction: str, references: Sequence[str], value_type: ValueType, asked: EvaluationJob = "all"
) -> float | None:
    """ROUGE-L (0-1) of a `text`, null of other values; see `free_answers.overlap`.

    With the best of alternatives; answers that are all asked for are one reference, joined by
    spaces in their order.
    """
    return _overlap("rougeL", prediction, references, value_type, asked)


def token_f1(
    prediction: str, references: Sequence[str], value_type: ValueType, asked: EvaluationJob = "all"
) -> float | None:
    """F1 (0-1) of the words of a `text`, null of other values; references as in `rouge_l`."""
    return _overlap("rouge1", prediction, references, value_type, asked)


def _overlap(
    rouge: str,
    prediction: str,
    references: Sequence[str],
    value_type: ValueType,
    asked: EvaluationJob,
) -> float | None:
    if value_type != "text":
        return None
    wanted = references if asked == "part" else [" ".join(references)]
    return overlap(clean(prediction), wanted, rouge)


Metric = Callable[[str, Sequence[str], ValueType, EvaluationJob], float | None]

METRICS: dict[str, Metric] = {
    "all": lambda prediction, references, *_: match_all(prediction, references),
    "part": lambda prediction, references, *_: match_part(prediction, references),
    "exact": exact,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
}
"""Every metric by the name of its column, in the order of the score tables."""
