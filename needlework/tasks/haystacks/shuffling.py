"""Shuffle repeated items, with some of them pinned to a place."""

from collections.abc import Iterable, Sequence

import numpy as np


def shuffled(
    repeats: np.ndarray, seed: int, pinned: Iterable[tuple[int, float]] = ()
) -> tuple[np.ndarray, list[int]]:
    """Shuffle the items 0, 1, ..., each repeated as often as `repeats` says.

    Args:
        repeats: number of copies per item, int64 [items].
        seed: determines the order.
        pinned: pairs (item, slot); one copy of the item moves to the slot, a place in [0, 1).

    Returns:
        The shuffled items, int64, and the index of each pinned copy, all distinct.
    """
    items = np.repeat(np.arange(len(repeats)), repeats)
    first_copies = repeats.cumsum() - repeats
    numbers = np.random.Generator(np.random.PCG64(seed))
    order = numbers.random(len(items)).argsort(kind="stable")
    places: list[int] = []
    for item, slot in pinned:
        place = _next_free(int(slot * len(items)), places, len(items))
        # Moving the first copy leaves the other copies where they were shuffled to.
        current = int(np.flatnonzero(order == first_copies[item])[0])
        order[[current, place]] = order[[place, current]]
        places.append(place)
    return items[order], places


def _next_free(place: int, occupied: Sequence[int], size: int) -> int:
    while place in occupied:
        place = (place + 1) % size
    return place
