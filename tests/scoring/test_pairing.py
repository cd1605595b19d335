"""Joining two tables of the same samples."""

import polars as pl
import pytest

from needlework.scoring.pairing import answered, pair

KEYS = {"task": ["a", "a", "b"], "length": [512, 512, 512], "sample": [0, 1, 0]}
LEFT = pl.DataFrame({**KEYS, "score": [1.0, 0.5, 0.0]})
RIGHT = pl.DataFrame({**KEYS, "other": [3, 4, 5]})
NAMES = ("scores", "samples")


def test_rows_meet_their_partners_in_the_order_of_the_left_table():
    joined = pair(LEFT, RIGHT.reverse(), NAMES)
    assert joined.equals(LEFT.with_columns(other=pl.Series([3, 4, 5])))


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (LEFT, RIGHT[:2], "scores: task b, length 512, sample 0 has no partner in the samples (1 "),
        (LEFT[1:], RIGHT, "samples: task a, length 512, sample 0 has no partner in the scores (1 "),
        (
            pl.concat([LEFT, LEFT[1:2]]),
            RIGHT,
            "scores: duplicate row for task a, length 512, sample 1",
        ),
        (
            LEFT,
            pl.concat([RIGHT, RIGHT[:1]]),
            "samples: duplicate row for task a, length 512, sample 0",
        ),
    ],
)
def test_a_row_without_exactly_one_partner_is_named(left, right, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        pair(left, right, NAMES)
    assert str(error.value).startswith(message)


def test_a_missing_status_is_an_answer():
    table = pl.DataFrame({"status": ["ok", None, "refused", "error"]})
    assert table.select(answered(table))["answered"].to_list() == [True, True, False, False]
    assert LEFT.select(answered(LEFT))["answered"].to_list() == [True]
