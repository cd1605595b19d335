"""Metrics of one answer: RULER's two substring metrics, and stricter ones."""

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Literal, get_args

from needlework.scoring.free_answers import consists_of, rouge_f1

ValueType = Literal["numbers", "words", "uuids", "text", "choice"]
ReferenceMode = Literal["all", "part"]
"""Whether an answer needs all references, or they are alternatives (part)."""

_CONTROL = re.compile(r"[\x00-\x1f]")
_CHOICES = (
    re.compile(r"\b(?i:answer|choice|option)\b(?: is|:|\s)*[\s*]*\(?([A-Z])\b(?!')"),
    re.compile(r"^[\s*(\[]*([A-Z])(?=[).:,\]*]|\s*$|\s*\n)"),
)
_VALUES = {
    "numbers": re.compile(r"[0-9]+"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "words": re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*"),
}


def clean(prediction: str) -> str:
    """The answer as RULER reads it: stripped, control characters made newlines, stripped."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def contains(prediction: str, references: Sequence[str]) -> list[bool]:
    """For each reference, whether it is a case-insensitive substring of the answer."""
    answer = clean(prediction).lower()
    return [reference.lower() in answer for reference in references]


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Share (0-1) of the references that the answer contains (RULER's string_match_all)."""
    return sum(contains(prediction, references)) / len(references)


def match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer contains any reference, else 0 (RULER's string_match_part)."""
    return float(any(contains(prediction, references)))


def exact(
    prediction: str,
    references: Sequence[str],
    value_type: ValueType,
    mode: ReferenceMode = "all",
) -> float:
    """1 if the answer starts with the references' values, as a set, else 0.

    Values are runs of digits (`numbers`), uuids, or words; if every reference has a hyphen
    (adjective-noun pairs), only hyphenated words are values. Case is ignored. The first k values
    of the answer must be the k values of the references: an answer that lists many candidates
    passes the substring metrics and fails here. A `text` must be the references and nothing else
    (`free_answers.consists_of`). In mode `part`, one of the references is enough.

    Raises:
        ValueError: for an unknown `value_type`, or a reference without a value of that type.
    """
    if value_type not in get_args(ValueType):
        raise ValueError(
            f"value_type {value_type!r}: must be one of {', '.join(get_args(ValueType))}"
        )
    answer = clean(prediction)
    if value_type == "choice":
        return float(chosen_letter(answer) in {reference.upper() for reference in references})
    alternatives = [references] if mode == "all" else [[reference] for reference in references]
    if value_type == "text":
        return float(any(consists_of(answer, group) for group in alternatives))
    return float(any(_starts_with(answer, group, value_type) for group in alternatives))


def chosen_letter(answer: str) -> str | None:
    """The letter of a multiple choice that an answer names, or None.

    It is the last one after `answer`, `choice` or `option`, or the one that the answer begins with
    or consists of; a letter that is a word, as in `I cannot decide`, is none.
    """
    named = [match[1] for match in _CHOICES[0].finditer(answer)]
    match = _CHOICES[1].match(answer)
    return named[-1] if named else match[1] if match else None


def _starts_with(answer: str, references: Sequence[str], value_type: ValueType) -> bool:
    hyphenated = value_type == "words" and all("-" in reference for reference in references)

    def values(text: str) -> list[str]:
        matches = _VALUES[value_type].findall(text.lower())
        return [value for value in matches if "-" in value] if hyphenated else matches

    expected = []
    for reference in references:
        if not values(reference):
            raise ValueError(f"reference {reference!r}: contains no value of type {value_type}")
        expected += values(reference)
    return set(values(answer)[: len(expected)]) == set(expected)


def rouge_l(
    prediction: str,
    references: Sequence[str],
    value_type: ValueType,
    mode: ReferenceMode = "all",
) -> float | None:
    """ROUGE-L (0-1) of a `text`, null for other values; see `free_answers.rouge_f1`.

    In mode `part` the best reference counts; in mode `all` the references, joined by spaces in
    their order, are one reference.
    """
    return _rouge("rougeL", prediction, references, value_type, mode)


def token_f1(
    prediction: str,
    references: Sequence[str],
    value_type: ValueType,
    mode: ReferenceMode = "all",
) -> float | None:
    """F1 (0-1) of the words of a `text`, null for other values; references as in `rouge_l`."""
    return _rouge("rouge1", prediction, references, value_type, mode)


def _rouge(
    variant: str,
    prediction: str,
    references: Sequence[str],
    value_type: ValueType,
    mode: ReferenceMode,
) -> float | None:
    if value_type != "text":
        return None
    alternatives = references if mode == "part" else [" ".join(references)]
    return rouge_f1(clean(prediction), alternatives, variant)


def prefix_ratio(
    prediction: str, references: Sequence[str], required_prefix: str | None
) -> float | None:
    """Similarity (0-1) of answer and reference after the prefix that both start with.

    0 if the answer does not start with it; null for samples without one. The ratio is that of
    `difflib.SequenceMatcher`, as in OpenAI's MRCR; of several references the most similar counts.
    """
    if required_prefix is None:
        return None
    answer = prediction.lstrip()
    if not answer.startswith(required_prefix):
        return 0.0
    rest = answer.removeprefix(required_prefix)
    return max(
        SequenceMatcher(None, rest, reference.removeprefix(required_prefix)).ratio()
        for reference in references
    )


Metric = Callable[[str, Sequence[str], ValueType, ReferenceMode], float | None]

METRICS: dict[str, Metric] = {
    "all": lambda prediction, references, kind, mode: (
        exact(prediction, references, kind, mode)
        if kind == "choice"
        else match_all(prediction, references)
    ),
    "part": lambda prediction, references, kind, mode: (
        exact(prediction, references, kind, mode)
        if kind == "choice"
        else match_part(prediction, references)
    ),
    "exact": exact,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
}
"""Metrics of any answer by their column, in the order of the score tables."""

COLUMNS = (*METRICS, "prefix_ratio")
"""Every metric's column."""
