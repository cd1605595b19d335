"""What a table must have before anything is read from it."""

import polars as pl


def require(table: pl.DataFrame, columns: list[str], name: str) -> None:
    """Raise ValueError, naming the table, if it is empty or lacks one of the columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{name}: lacks the column {missing[0]!r}; make the table again")
    if table.is_empty():
        raise ValueError(f"{name}: has no rows; make the table again")
