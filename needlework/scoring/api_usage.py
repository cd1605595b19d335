"""What answers of systems behind an API cost: requests, tokens and dollars."""

import polars as pl

_KEYS = ["system", "task", "length", "sample"]
ALL = "all"
"""The task of a row that holds the total of a system."""


def api_usage(measurements: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """Requests, tokens and price of each system behind an API, by task and length.

    Args:
        measurements: system, task, length, sample, attempts, prompt_tokens, cached_tokens,
            price_dollars; null where unknown.
        predictions: system, task, length, sample, status, new_tokens.

    Returns:
        One row per system, task and length, then one of task "all" without a length per system:
        samples, answered, requests (attempts of all samples), prompt_tokens, cached_tokens and
        new_tokens (as the API counts them), price_dollars (of the successful requests). A sum over
        samples whose values are all unknown is null.
    """
    sums = ["attempts", "prompt_tokens", "cached_tokens", "new_tokens", "price_dollars"]
    answers = predictions.select(*_KEYS, "status", "new_tokens")
    table = measurements.join(answers, on=_KEYS, how="inner", validate="1:1")
    aggregated = [
        pl.len().alias("samples"),
        (pl.col("status") == "ok").sum().alias("answered"),
        *(pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in sums),
    ]
    cells = (
        table.group_by("system", "task", "length").agg(aggregated).sort("system", "task", "length")
    )
    totals = table.group_by("system").agg(aggregated).sort("system")
    totals = totals.with_columns(task=pl.lit(ALL), length=pl.lit(None, dtype=pl.Int64))
    return pl.concat([cells, totals.select(cells.columns)]).rename({"attempts": "requests"})
