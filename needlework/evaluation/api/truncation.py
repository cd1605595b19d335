"""Prompts that a server cuts in silence, found by the tokens that it says it read."""

from collections.abc import Sequence

import polars as pl

_CLEARLY_BELOW = 0.75
"""Below this share of the sample's tokens a prompt counts as cut.

Within a cell nothing tells a cut from a server whose tokenizer needs fewer tokens. Tokenizers of a
model family agree to a few percent, and servers that cut often keep a half; a tokenizer with a
larger vocabulary can fall below on numbers or scripts that the smaller one splits.
"""
_GROWTH = 1.25
"""Prompts that differ by this factor in length must differ in a server's count."""
_GROWTH_SHARE = 0.25
"""Share of the expected growth of the count below which it stays equal, up to the last words.

The share is small because servers add a constant number of tokens to each prompt.
"""
_SAMPLE = ["system", "task", "length", "sample"]


def truncated_in_cell(
    tokens: Sequence[int], counted: Sequence[int | None], has_tokens: bool
) -> list[str | None]:
    """For each sample of a cell, why its prompt must have been cut, or None.

    Args:
        tokens: length of each sample, in tokens or characters.
        counted: prompt tokens by the server's count; None if unknown.
        has_tokens: whether `tokens` are tokens.
    """
    return [
        f"the API counts {count:,} tokens where the sample has {own:,}; does it truncate prompts?"
        if has_tokens and count is not None and count < _CLEARLY_BELOW * own
        else None
        for own, count in zip(tokens, counted, strict=True)
    ]


def truncated_across_lengths(predictions: pl.DataFrame, measurements: pl.DataFrame) -> pl.DataFrame:
    """Samples of a length for which a server counts hardly more tokens than for a shorter length.

    This holds for any tokenizer: a count must grow with the prompts.

    Args:
        predictions: system, task, length, sample, status.
        measurements: system, task, length, sample, prompt_tokens (null if unknown), sample_length
            (in tokens or characters by the sample's own count).

    Returns:
        system, task, length, sample, status (`truncated`) and reason of samples with status ok.
    """
    rows = predictions.select(*_SAMPLE, "status").join(
        measurements.select(*_SAMPLE, "prompt_tokens", "sample_length"),
        on=_SAMPLE,
        maintain_order="left",
    )
    rows = rows.filter(pl.col("status").is_in(["ok", "truncated"])).drop_nulls("prompt_tokens")
    cell = ["system", "task", "length"]
    cells = rows.group_by(cell, maintain_order=True).agg(
        highest=pl.col("prompt_tokens").max(), longest=pl.col("sample_length").max()
    )
    shorter = cells.select(
        "system",
        "task",
        shorter_length="length",
        shorter_highest="highest",
        shorter_longest="longest",
    )
    growth = pl.col("longest") / pl.col("shorter_longest")
    expected = (growth - 1) * pl.col("shorter_highest")
    pairs = cells.join(shorter, on=["system", "task"], maintain_order="left").filter(
        growth >= _GROWTH,
        pl.col("highest") - pl.col("shorter_highest") <= _GROWTH_SHARE * expected,
    )
    cut = pairs.group_by(cell, maintain_order=True).agg(
        pl.col("shorter_length").max(), pl.col("highest").first()
    )
    return (
        rows.filter(pl.col("status") == "ok")
        .join(cut, on=cell, maintain_order="left")
        .select(
            *_SAMPLE,
            status=pl.lit("truncated"),
            reason=pl.format(
                "the API counts at most {} tokens, hardly more than at length {}; "
                "does it truncate prompts?",
                "highest",
                "shorter_length",
            ),
        )
    )
