"""Keys and values: numbers, adjective-noun words, uuids."""

import math
import uuid
from collections.abc import Collection
from random import Random

from needlework.config.tasks import ValueType
from needlework.tasks.haystacks.words import Part, draw_keys, words


def draw(
    random: Random,
    kind: ValueType,
    count: int,
    *,
    digits: int = 7,
    part: Part = "all",
    but: Collection[str] = (),
) -> list[str]:
    """`count` different values of a kind, none of them in `but`.

    Numbers have `digits` digits, no zero first; words are an adjective and a noun with a hyphen
    between, both of `part` of the words; uuids are of version 4.

    Raises:
        ValueError: there are not so many.
    """
    most = _most(kind, digits, part)
    if count + len(but) > most and count + sum(_is(kind, value, digits) for value in but) > most:
        more = "more digits" if kind == "numbers" else "uuids, or numbers of more digits"
        raise ValueError(
            f"there are {most} different {kind}{f' of {digits} digits' * (kind == 'numbers')}, too"
            f" few for the keys and values; write {more}"
        )
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        if kind == "numbers":
            value = str(random.randrange(10 ** (digits - 1), 10**digits))
        elif kind == "uuids":
            value = str(uuid.UUID(int=random.getrandbits(128), version=4))
        else:
            (value,) = draw_keys(random, 1, part)
        if value not in but:
            drawn[value] = None
    return list(drawn)


def _most(kind: ValueType, digits: int, part: Part) -> float:
    """How many different values of a kind there are."""
    if kind == "numbers":
        return 9 * 10 ** (digits - 1)
    return len(words("adjective", part)) * len(words("noun", part)) if kind == "words" else math.inf


def _is(kind: ValueType, value: str, digits: int) -> bool:
    return value.isdigit() and len(value) == digits if kind == "numbers" else not value.isdigit()
