"""Tables before they are read: joined from several files, and checked for their columns."""

from collections.abc import Sequence

import polars as pl


def concat(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all tables; a column that a table lacks is null there.

    Tables of systems behind an API have columns that others lack.
    """
    return pl.concat(tables, how="diagonal")


def require(table: pl.DataFrame, columns: list[str], name: str) -> None:
    """Raise ValueError, naming the table, if it has no rows or lacks one of the columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{name}: column {missing[0]!r} is missing; make the table again")
    if table.is_empty():
        raise ValueError(f"{name}: no rows; make the table again")
