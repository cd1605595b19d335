"""Cut prompts, by the tokens that a server counts at growing lengths."""

import polars as pl

from needlework.evaluation.api.truncation import truncated_across_lengths


def tables(counts: dict[int, int | None]) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = [{"system": "s", "task": "t", "length": length, "sample": 0} for length in counts]
    keys = pl.DataFrame(rows)
    tokens = pl.Series("prompt_tokens", list(counts.values()), pl.Int64)
    return keys.with_columns(status=pl.lit("ok")), keys.with_columns(tokens)


def test_usage_that_stays_equal_while_lengths_grow_is_a_cut():
    cut = truncated_across_lengths(*tables({1024: 1020, 8192: 4096, 16384: 4096}))
    assert cut["length"].to_list() == [16384]
    assert cut["reason"][0].startswith("the API counts at most 4096 tokens, no more than at")


def test_usage_that_grows_or_is_unknown_is_no_cut():
    assert truncated_across_lengths(*tables({1024: 1020, 2048: 2050, 4096: 4100})).is_empty()
    assert truncated_across_lengths(*tables({1024: None, 2048: None})).is_empty()
