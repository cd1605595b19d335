"""The order in which rows are drawn from several tables."""

from collections import Counter
from itertools import islice

import pytest
import torch

from needlework.training.data_order import cycle_shuffled, mix_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_decide_the_table_and_each_table_has_its_own_order():
    orders = [cycle_shuffled(range(5), generator(1)), cycle_shuffled(range(5, 8), generator(2))]
    batches = mix_batches(orders, [3, 1], 4, generator())
    drawn = [n for batch in islice(batches, 2000) for n in batch]
    by_table = [[n for n in drawn if n < 5], [n for n in drawn if n >= 5]]
    # 8000 draws: five standard deviations are 0.024.
    assert len(by_table[0]) / len(drawn) == pytest.approx(0.75, abs=0.024)
    for numbers, table in zip(by_table, [range(5), range(5, 8)], strict=True):
        epochs = [numbers[i : i + len(table)] for i in range(0, len(numbers), len(table))]
        assert all(sorted(epoch) == [*table] for epoch in epochs[:-1])
        assert len(Counter(map(tuple, epochs[:-1]))) > 1
