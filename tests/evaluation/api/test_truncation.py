"""Cut prompts, by the tokens that a server counts at growing lengths."""

import polars as pl

from needlework.evaluation.api.truncation import truncated_across_lengths


def tables(
    counts: dict[int, int | None], own: list[int] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = [{"system": "s", "task": "t", "length": length, "sample": 0} for length in counts]
    keys = pl.DataFrame(rows)
    tokens = pl.Series("prompt_tokens", list(counts.values()), pl.Int64)
    lengths = pl.Series("sample_length", list(counts) if own is None else own)
    return keys.with_columns(status=pl.lit("ok")), keys.with_columns(tokens, lengths)


def test_usage_that_stays_equal_while_lengths_grow_is_a_cut():
    cut = truncated_across_lengths(*tables({1024: 1020, 8192: 4096, 16384: 4096}))
    assert cut["length"].to_list() == [16384]
    assert cut["reason"][0].startswith("the API counts at most 4096 tokens, hardly more than at")


def test_usage_that_varies_by_the_last_words_is_a_cut():
    cut = truncated_across_lengths(*tables({4096: 4090, 8192: 4130, 16384: 4117}))
    assert cut["length"].to_list() == [8192, 16384]


def test_usage_that_grows_or_is_unknown_is_no_cut():
    assert truncated_across_lengths(*tables({1024: 1020, 2048: 2050, 4096: 4100})).is_empty()
    assert truncated_across_lengths(*tables({1024: None, 2048: None})).is_empty()


def test_another_tokenizer_or_a_constant_overhead_is_no_cut():
    assert truncated_across_lengths(*tables({1024: 310, 2048: 615, 4096: 1230})).is_empty()
    overhead = {length: length + 300 for length in (128, 256, 512, 4096)}
    assert truncated_across_lengths(*tables(overhead)).is_empty()


def test_the_same_prompts_at_several_lengths_are_no_cut():
    counts = {1024: 700, 4096: 700, 8192: 700}
    assert truncated_across_lengths(*tables(counts, [690, 690, 690])).is_empty()


def test_a_cut_is_found_in_characters_too():
    cut = truncated_across_lengths(*tables({4000: 1000, 16000: 1010}))
    assert cut["length"].to_list() == [16000]
