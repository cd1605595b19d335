"""Shuffling with pinned items."""

import numpy as np
import pytest
from scipy.stats import chisquare

from needlework.tasks.haystacks.shuffling import shuffled

REPEATS = np.array([3, 2, 6, 1])


def test_every_item_appears_as_often_as_requested():
    for seed in range(50):
        items, places = shuffled(REPEATS, seed, [(0, 0.5), (2, 0.999)])
        assert np.bincount(items).tolist() == REPEATS.tolist()
        assert places == [6, 11]
        assert items[6] == 0
        assert items[11] == 2


def test_equal_slots_give_different_places():
    items, places = shuffled(REPEATS, 1, [(0, 0.99), (1, 0.999), (3, 0.98)])
    assert places == [11, 0, 1]
    assert items[places].tolist() == [0, 1, 3]


@pytest.mark.parametrize("pinned", [[], [(0, 0.25)]])
def test_other_items_are_anywhere(pinned):
    times = np.zeros((len(REPEATS), REPEATS.sum()))
    for seed in range(4000):
        items, _ = shuffled(REPEATS, seed, pinned)
        times[items, np.arange(len(items))] += 1
    free = [place for place in range(REPEATS.sum()) if not pinned or place != 3]
    for item in times[:, free]:
        assert chisquare(item).pvalue > 1e-4


def test_the_order_depends_only_on_the_seed():
    assert (shuffled(REPEATS, 5)[0] == shuffled(REPEATS, 5)[0]).all()
    assert len({tuple(shuffled(REPEATS, seed)[0]) for seed in range(20)}) > 15
