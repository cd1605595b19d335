"""Random streams of samples."""

import pytest

from needlework.tasks.seeds import hash_fraction, stream_seed


def test_seeds_are_the_same_on_every_machine():
    assert stream_seed(1, {"b": None, "a": 2}, "x") == 8714547000106859454
    assert hash_fraction("needle") == pytest.approx(0.03723331886540038)


def test_every_part_and_its_type_matter():
    parts = [(1, 2), (2, 1), (12,), (1, "2"), ([1, 2],), (1, 2, 0), (1, 2.5)]
    seeds = {stream_seed(*values) for values in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("parts", [2, 10])
def test_fractions_split_texts_evenly(parts):
    counts = [0] * parts
    for i in range(2000):
        counts[int(hash_fraction(f"text {i}") * parts)] += 1
    assert sum(counts) == 2000
    assert min(counts) > 0.8 * 2000 / parts
