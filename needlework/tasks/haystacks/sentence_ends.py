"""Where sentences end in any script, and which are joined without a blank."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import accumulate

_QUOTES = "\"'”’"
_END = rf"(?:[。！？｡।॥؟۔։።፧፨။។៕‼⁇⁈⁉]|．(?!\d))+[{_QUOTES}」』）】》〉〕］｝)]*"
"""A sentence end that Punkt does not know, closing quotes and brackets included."""
_SENTENCE = re.compile(rf".*?{_END}|.+")
_ANY_END = re.compile(rf"[.!?](?=\s|$)|{_END}")
_NARROW = "\u1100"
"""Characters below are written with blanks between sentences."""


def split_at_ends(text: str) -> Iterator[str]:
    """Split one line after each sentence end other than the Latin . ! ?"""
    return (part for match in _SENTENCE.finditer(text) if (part := match[0].strip()))


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of one line end, by their marks alone."""
    return [match.end() for match in _ANY_END.finditer(text)]


def needs_no_blank(sentence: str) -> bool:
    """Whether the next sentence follows without a blank, as in Chinese and Japanese."""
    last = sentence[-1:]
    if last in _QUOTES:
        last = sentence.rstrip(_QUOTES)[-1:]
    return (
        last >= _NARROW
        and unicodedata.east_asian_width(last) in "WF"
        and unicodedata.category(last)[0] in "LP"
        and not unicodedata.name(last, "").startswith("HANGUL")
    )


def blank_after(sentence: str) -> str:
    """What separates a sentence from the next one: a blank, or nothing."""
    return "" if needs_no_blank(sentence) else " "


def join_sentences(sentences: list[str]) -> tuple[str, list[int]]:
    """Join sentences as their scripts do.

    Returns:
        The text, and where each sentence starts in it.
    """
    pieces = [s + blank_after(s) for s in sentences[:-1]] + sentences[-1:]
    return "".join(pieces), [0, *accumulate(map(len, pieces[:-1]))]
