"""Numbers of a plan as text."""

import pytest

from needlework.planning.render import dollars


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0, "$0.00"),
        (0.0136, "$0.0136"),
        (0.01361, "$0.0137"),
        (0.000021, "$0.0000210"),
        (0.3, "$0.300"),
        (12.341, "$12.35"),
        (1234.5, "$1,234.50"),
    ],
)
def test_prices_are_rounded_up_at_three_digits(amount, text):
    assert dollars(amount) == text
