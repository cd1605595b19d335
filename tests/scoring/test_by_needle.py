"""Accuracy of each of several needles."""

import polars as pl
import pytest

from needlework.scoring.by_needle import by_needle
from needlework.scoring.intervals import wilson

SCHEMA = {
    **dict.fromkeys(("system", "task"), pl.String),
    **dict.fromkeys(("length", "sample"), pl.Int64),
    "needle_keys": pl.List(pl.String),
    "needle_found": pl.List(pl.Boolean),
}


def table(rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


ROWS = [
    ("zebra", "fixed", 64, 0, ["figs", "eggs"], [True, False]),
    ("zebra", "fixed", 64, 1, ["figs", "eggs"], [True, True]),
    ("zebra", "fixed", 32, 0, ["figs", "eggs"], [False, False]),
    ("zebra", "random", 64, 0, ["a-b", "c-d", "e-f"], [True, False, True]),
    ("zebra", "random", 64, 1, ["g-h", "i-j", "e-f"], [True, False, False]),
    ("zebra", "single", 64, 0, ["k"], [True]),
    ("zebra", "none", 64, 0, [], []),
    ("ant", "fixed", 64, 0, ["figs", "eggs"], [False, True]),
]


def test_each_needle_equals_a_loop_over_its_answers():
    expected = []
    for system, task, length, keys in [
        ("zebra", "fixed", 32, ["figs", "eggs"]),
        ("zebra", "fixed", 64, ["figs", "eggs"]),
        ("zebra", "random", 64, [None, None, "e-f"]),
        ("ant", "fixed", 64, ["figs", "eggs"]),
    ]:
        for j, key in enumerate(keys):
            hits = [row[5][j] for row in ROWS if row[:3] == (system, task, length)]
            share = sum(hits) / len(hits)
            low, high = map(float, wilson(share, len(hits)))
            expected.append((system, task, length, j + 1, key, len(hits), share, low, high))
    needles = by_needle(table(ROWS))
    assert needles.columns == [
        *("system", "task", "length", "needle", "key", "n", "accuracy", "ci_low", "ci_high")
    ]
    assert needles.rows() == expected
    shuffled = [*reversed(ROWS[:7]), ROWS[7]]
    assert by_needle(table(shuffled)).sort(pl.all()).equals(needles.sort(pl.all()))


def test_without_several_needles_the_table_has_columns_but_no_rows(tmp_path):
    single, none = by_needle(table(ROWS[5:6])), by_needle(table(ROWS[6:7]))
    assert len(single) == len(none) == 0
    assert single.schema == none.schema == by_needle(table(ROWS)).schema
    single.write_csv(tmp_path / "needles.csv", float_precision=6)
    assert (tmp_path / "needles.csv").read_text() == (
        "system,task,length,needle,key,n,accuracy,ci_low,ci_high\n"
    )


def test_scores_without_needles_are_an_error():
    with pytest.raises(
        ValueError, match=r"^scores: column 'needle_found' is missing; make the tab"
    ):
        by_needle(table(ROWS).drop("needle_found"))
