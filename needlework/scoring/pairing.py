"""Tables that speak of the same samples: checked and joined one to one."""

import polars as pl

from needlework.tables.columns import require

KEYS = ["task", "length", "sample"]


def pair(
    left: pl.DataFrame,
    right: pl.DataFrame,
    names: tuple[str, str],
    keys: list[str] = KEYS,
) -> pl.DataFrame:
    """Join two tables on `keys`, in the order of `left`; `names` are those used in errors.

    Raises:
        ValueError: unless every row of each table has exactly one partner in the other.
    """
    for table, name in zip((left, right), names, strict=True):
        require(table, keys, name)
        twice = table.filter(table.select(keys).is_duplicated())
        if len(twice):
            raise ValueError(f"{name}: {_row(twice, keys)} is there more than once")
    for table, other, (name, other_name) in ((left, right, names), (right, left, names[::-1])):
        alone = table.join(other, on=keys, how="anti", maintain_order="left")
        if len(alone):
            raise ValueError(
                f"{name}: {_row(alone, keys)} has no partner in the {other_name} "
                f"({len(alone)} of {len(table)} rows); make both from the same samples"
            )
    return left.join(right, on=keys, how="inner", validate="1:1", maintain_order="left")


def answered(predictions: pl.DataFrame) -> pl.Expr:
    """Whether each row of `predictions` is an answer: its status is ok, null, or not told."""
    told = "status" in predictions.columns
    status = pl.col("status").fill_null("ok") if told else pl.lit("ok")
    return (status == "ok").alias("answered")


def _row(table: pl.DataFrame, keys: list[str]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in table.select(keys).row(0, named=True).items()
    )
