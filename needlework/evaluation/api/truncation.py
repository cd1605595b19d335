"""Prompts that a server cuts in silence, found by the tokens that it says it read."""

from collections.abc import Sequence

import polars as pl

_CLEARLY_BELOW = 0.75
"""A server with another tokenizer counts fewer tokens too; this share of ours is a cut."""
_GROWTH = 1.25
"""Lengths that differ by this factor cannot have the same number of tokens."""
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
    """Samples of a length for which a server counts no more tokens than for a shorter length.

    Args:
        predictions: system, task, length, sample, status.
        measurements: system, task, length, sample, prompt_tokens (null if unknown).

    Returns:
        system, task, length, sample, status (`truncated`) and reason of samples with status ok.
    """
    rows = predictions.select(*_SAMPLE, "status").join(
        measurements.select(*_SAMPLE, "prompt_tokens"), on=_SAMPLE, maintain_order="left"
    )
    rows = rows.filter(pl.col("status").is_in(["ok", "truncated"])).drop_nulls("prompt_tokens")
    cell = ["system", "task", "length"]
    cells = rows.group_by(cell, maintain_order=True).agg(
        lowest=pl.col("prompt_tokens").min(), highest=pl.col("prompt_tokens").max()
    )
    shorter = cells.select("system", "task", shorter_length="length", shorter_highest="highest")
    pairs = cells.join(shorter, on=["system", "task"], maintain_order="left").filter(
        pl.col("length") >= _GROWTH * pl.col("shorter_length"),
        pl.col("highest") <= pl.col("shorter_highest"),
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
                "the API counts at most {} tokens, no more than at length {}; "
                "does it truncate prompts?",
                "highest",
                "shorter_length",
            ),
        )
    )
