"""Axes: labels that do not overlap, ticks that enclose the data."""

import itertools
import json
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.figures.style.axes import length_axis, log_ticks, octaves_per_pixel, side_by_side

QUICK = [512, 1000, 1024, 2048, 3000, 4096]


def labels(lengths, width):
    axis = length_axis(lengths, width).to_dict()["axis"]
    assert axis["values"] == sorted(lengths)
    return json.loads(re.match(r"\{.*?\}", axis["labelExpr"])[0])


@pytest.mark.parametrize("width", [320, 420, 560])
def test_close_lengths_are_all_labelled_on_different_lines(width):
    shown = labels(QUICK, width)
    assert {int(length): lines[-1] for length, lines in shown.items()} == {
        length: f"{length:,}" for length in QUICK
    }
    assert len(shown["1024"]) == 1
    assert len(shown["1000"]) == 2


@pytest.mark.slow
@given(st.lists(st.integers(1, 2**24), min_size=1, max_size=12, unique=True))
def test_labels_of_a_line_do_not_overlap(lengths):
    width = 320
    low, high = length_axis(lengths, width).to_dict()["scale"]["domain"]
    octaves = octaves_per_pixel(lengths, width)
    lines = {}
    for length, text in labels(lengths, width).items():
        center = (pl.Series([int(length) / low]).log(2) / octaves).item()
        half = 3.2 * len(text[-1])  # 12 px digits are 6.7 px wide, commas 3.3
        assert 0 <= center <= width
        lines.setdefault(len(text), []).append((center - half, center + half))
    assert low < min(lengths)
    assert max(lengths) < high
    for spans in lines.values():
        spans.sort()
        assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6), st.sampled_from([2, 10]))
def test_ticks_enclose_the_range(low, factor, base):
    ticks = log_ticks(low, low * factor, base)
    assert ticks[0] <= low
    assert ticks[-1] >= low * factor
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


def test_systems_are_side_by_side_around_their_length():
    table = pl.DataFrame({"system": ["b", "a", "c"], "length": [1024] * 3})
    x = side_by_side(table, QUICK, 400)["x"]
    assert x[1] == 1024
    assert x[0] < x[1] < x[2]
    assert x[0] * x[2] == pytest.approx(1024**2)
