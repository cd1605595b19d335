"""Keys and values: numbers, adjective-noun words, uuids."""

import uuid
from collections.abc import Collection
from random import Random

from needlework.config.tasks import ValueType
from needlework.tasks.words import Part, draw_keys


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
    if kind == "numbers" and count + len(but) > 9 * 10 ** (digits - 1):
        raise ValueError(f"there are no {count} different numbers of {digits} digits; write more")
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
