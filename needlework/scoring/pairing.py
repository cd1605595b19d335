"""Check that two tables have the same samples, and join them one to one."""

import polars as pl

from needlework.tables.columns import require

SAMPLE_KEYS = ["task", "length", "sample"]


def pair(
    left: pl.DataFrame,
    right: pl.DataFrame,
    names: tuple[str, str],
    keys: list[str] = SAMPLE_KEYS,
) -> pl.DataFrame:
    """Join two tables on `keys`, in the order of `left`; `names` identify them in errors.

    Raises:
        ValueError: unless every row of each table has exactly one partner in the other.
    """
    for table, name in zip((left, right), names, strict=True):
        require(table, keys, name)
        duplicates = table.filter(table.select(keys).is_duplicated())
        if len(duplicates):
            raise ValueError(f"{name}: duplicate row for {_row(duplicates, keys)}")
    for table, other, (name, other_name) in ((left, right, names), (right, left, names[::-1])):
        unmatched = table.join(other, on=keys, how="anti", maintain_order="left")
        if len(unmatched):
            raise ValueError(
                f"{name}: {_row(unmatched, keys)} has no partner in the {other_name} "
                f"({len(unmatched)} of {len(table)} rows); make both from the same samples"
            )
    return left.join(right, on=keys, how="inner", validate="1:1", maintain_order="left")


def answered(predictions: pl.DataFrame) -> pl.Expr:
    """Whether each prediction is an answer: its status is ok or null, or there is no status."""
    has_status = "status" in predictions.columns
    status = pl.col("status").fill_null("ok") if has_status else pl.lit("ok")
    return (status == "ok").alias("answered")


def _row(table: pl.DataFrame, keys: list[str]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in table.select(keys).row(0, named=True).items()
    )
