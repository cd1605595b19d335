"""Depths: spacings of a given number, and what else the key accepts."""

import math

import pytest
from pydantic import TypeAdapter

from needlework.config.depths import Depths, linear, sigmoid


@pytest.mark.parametrize("spacing", [linear, sigmoid])
@pytest.mark.parametrize("count", [2, 3, 11, 40])
def test_spacings_are_symmetric_and_end_at_0_and_100(spacing, count):
    depths = spacing(count)
    assert len(depths) == count
    assert (depths[0], depths[-1]) == (0, 100)
    assert depths == sorted(set(depths))
    for left, right in zip(depths, reversed(depths), strict=True):
        assert left + right == pytest.approx(100, abs=2e-3)


def test_sigmoid_is_denser_towards_both_ends():
    depths = sigmoid(11)
    assert depths[1] == pytest.approx(100 / (1 + math.exp(4)), abs=1e-3)
    assert depths[2] - depths[1] < depths[5] - depths[4]


def test_a_single_depth_is_the_middle():
    assert linear(1) == sigmoid(1) == [50.0]


@pytest.mark.parametrize(
    ("value", "depths"),
    [
        ("uniform", "uniform"),
        ([0, 12.5], [0.0, 12.5]),
        ({"linear": 3}, [0.0, 50.0, 100.0]),
        ({"sigmoid": 2}, [0.0, 100.0]),
    ],
)
def test_every_form_expands_to_depths(value, depths):
    assert TypeAdapter(Depths).validate_python(value) == depths


@pytest.mark.parametrize("value", [5, "even", {"linear": 0}, {"linear": 2, "sigmoid": 2}, {}])
def test_other_values_are_rejected(value):
    with pytest.raises(ValueError, match=r"write a list of percents, `uniform`, `\{linear: 11\}`"):
        TypeAdapter(Depths).validate_python(value)
