"""Shuffled lists in which some items stand at slots."""

from collections.abc import Iterable, Sequence

import numpy as np


def shuffled(
    repeats: np.ndarray, seed: int, at: Iterable[tuple[int, float]] = ()
) -> tuple[np.ndarray, list[int]]:
    """Items 0, 1, ..., each as often as `repeats` says, in a random order.

    Args:
        repeats: int64, one an item.
        seed: tells the order.
        at: pairs of an item and a slot in [0, 1) of the order, where one of its copies is put.

    Returns:
        The items, int64, and the index at which each item of `at` was put, no two the same.
    """
    items = np.repeat(np.arange(len(repeats)), repeats)
    firsts = repeats.cumsum() - repeats
    numbers = np.random.Generator(np.random.PCG64(seed))
    order = numbers.random(len(items)).argsort(kind="stable")
    places: list[int] = []
    for item, slot in at:
        place = _free(int(slot * len(items)), places, len(items))
        # Copies are alike: to move the first leaves the others where chance put them.
        own = int(np.flatnonzero(order == firsts[item])[0])
        order[[own, place]] = order[[place, own]]
        places.append(place)
    return items[order], places


def _free(place: int, taken: Sequence[int], size: int) -> int:
    while place in taken:
        place = (place + 1) % size
    return place
