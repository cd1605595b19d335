"""Joining tables, and checking their columns."""

import polars as pl
import pytest

from needlework.tables.columns import concat, require


def test_concat_fills_absent_columns_with_null():
    tables = [pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2], "b": [3]})]
    assert concat(tables).rows() == [(1, None), (2, 3)]


def test_require_names_the_table_and_the_first_missing_column():
    table = pl.DataFrame({"a": [1]})
    require(table, ["a"], "scores")
    with pytest.raises(ValueError, match=r"^scores: column 'b' is missing; make the table again$"):
        require(table, ["a", "b", "c"], "scores")
    with pytest.raises(ValueError, match=r"^scores: no rows; make the table again$"):
        require(table.clear(), ["a"], "scores")
