"""Answers that occur in a context outside the text that states them."""

import re
from collections.abc import Iterable, Sequence


def answer_pattern(answer: str, whole_words: bool = False) -> re.Pattern[str]:
    """Matches an answer in case-folded text; with `whole_words` not within a longer Latin word."""
    pattern = re.escape(answer.casefold())
    if whole_words and answer.isascii():
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.compile(pattern)


def occurrences(
    answers: Iterable[str], context: str, own: Sequence[str], whole_words: bool = False
) -> dict[str, int]:
    """How often each answer occurs in `context` outside `own`, ignoring case; only if it does.

    Args:
        answers: texts to look for.
        context: text to look in.
        own: texts that state the answers, parts of `context`.
        whole_words: see `answer_pattern`.
    """
    outside, inside = context.casefold(), [text.casefold() for text in own]
    counts: dict[str, int] = {}
    for answer in answers:
        find = answer_pattern(answer, whole_words).findall
        count = len(find(outside)) - sum(len(find(text)) for text in inside)
        if count > 0:
            counts[answer] = count
    return counts
