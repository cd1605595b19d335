"""Draw keys and values: numbers, adjective-noun words, uuids."""

import math
import uuid
from collections.abc import Collection
from random import Random

from needlework.config.tasks.base import ValueType
from needlework.tasks.haystacks.words import WordSource, count_keys, draw_keys


def draw_values(
    random: Random,
    kind: ValueType,
    count: int,
    *,
    digits: int = 7,
    part: WordSource = "all",
    exclude: Collection[str] = (),
) -> list[str]:
    """Draw `count` distinct values of one kind, none of them in `exclude`.

    Numbers have `digits` digits without a leading zero. Words are an adjective and a noun joined
    by a hyphen, both from `part` of the word lists, or the words of a list. Uuids are version 4.

    Raises:
        ValueError: fewer distinct values exist.
    """
    available = _count_values(kind, digits, part)
    # Counting the excluded values of this kind is slow, and rarely needed.
    if count + len(exclude) > available and (
        count + sum(_is_kind(kind, value, digits) for value in exclude) > available
    ):
        of_digits = f" of {digits} digits" if kind == "numbers" else ""
        remedy = "more digits" if kind == "numbers" else "uuids, or numbers of more digits"
        if kind == "words" and isinstance(part, list):
            remedy = "more key_words"
        raise ValueError(
            f"there are only {available} different {kind}{of_digits}, too few for the keys and "
            f"values; write {remedy}"
        )
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        if kind == "numbers":
            value = str(random.randrange(10 ** (digits - 1), 10**digits))
        elif kind == "uuids":
            value = str(uuid.UUID(int=random.getrandbits(128), version=4))
        else:
            (value,) = draw_keys(random, 1, part)
        if value not in exclude:
            drawn[value] = None
    return list(drawn)


def _count_values(kind: ValueType, digits: int, part: WordSource) -> float:
    """The number of distinct values of a kind."""
    if kind == "numbers":
        return 9 * 10 ** (digits - 1)
    return count_keys(part) if kind == "words" else math.inf


def _is_kind(kind: ValueType, value: str, digits: int) -> bool:
    return value.isdigit() and len(value) == digits if kind == "numbers" else not value.isdigit()
