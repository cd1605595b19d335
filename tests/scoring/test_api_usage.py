"""Requests, tokens and price of systems behind an API."""

import polars as pl

from needlework.scoring.api_usage import api_usage


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two samples at two lengths of system `paid`, one of them without an answer, and one of a
    system without a price."""
    rows = [
        # system, length, sample, attempts, prompt, cached, dollars, status, new
        ("paid", 128, 0, 1, 100, 0, 0.25, "ok", 7),
        ("paid", 128, 1, 3, 110, 50, 0.5, "ok", 8),
        ("paid", 256, 0, 2, 200, 0, 1.0, "ok", 9),
        ("paid", 256, 1, 6, None, None, None, "error", None),
        ("free", 128, 0, 1, None, None, None, "ok", None),
    ]
    names = "system length sample attempts prompt_tokens cached_tokens price_dollars status"
    table = pl.DataFrame(rows, [*names.split(), "new_tokens"], orient="row")
    table = table.with_columns(task=pl.lit("passkey"))
    answers = ["system", "task", "length", "sample", "status", "new_tokens"]
    return table.drop("status", "new_tokens"), table.select(answers)


def test_usage_is_summed_by_cell_and_by_system():
    usage = api_usage(*tables())
    columns = "system task length samples answered requests prompt_tokens cached_tokens"
    assert usage.columns == [*columns.split(), "new_tokens", "price_dollars"]
    assert usage.rows() == [
        ("free", "passkey", 128, 1, 1, 1, None, None, None, None),
        ("paid", "passkey", 128, 2, 2, 4, 210, 50, 15, 0.75),
        ("paid", "passkey", 256, 2, 1, 8, 200, 0, 9, 1.0),
        ("free", "all", None, 1, 1, 1, None, None, None, None),
        ("paid", "all", None, 4, 3, 12, 410, 50, 24, 1.75),
    ]


def test_cells_that_were_not_run_leave_no_rows():
    assert api_usage(*(table.clear() for table in tables())).is_empty()
