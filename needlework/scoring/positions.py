"""Perplexity of streams by position, with intervals, from losses by span of positions."""

import math

import numpy as np
import polars as pl
from scipy.special import stdtrit

_CELL = ["system", "stream"]


def by_position(positions: pl.DataFrame, confidence: float = 0.95) -> pl.DataFrame:
    """Perplexity of each doubling of the position.

    Args:
        positions: system, stream, shard, first_position, end_position, tokens, loss (mean, nats):
            spans, each a sixteenth of a doubling, from the rule stream_perplexity.

    Returns:
        system, stream, first_position, end_position (exclusive), position (the geometric middle),
        tokens, spans (of all shards), loss, perplexity, ci_low, ci_high. The interval is Student's
        t over the means of the spans, equally weighted ("batch means": losses within a span are
        correlated, those of different spans hardly); null with fewer than four spans. A doubling
        that the text ends within ends where the text does. Rows are in the order of `positions`,
        then by position.
    """
    octave = pl.col("first_position").log(2).add(1e-9).floor().cast(pl.Int64)
    weight = pl.col("tokens") / pl.col("tokens").sum()
    cells = (
        positions.with_columns(octave=octave)
        .group_by(*_CELL, "octave", maintain_order=True)
        .agg(
            pl.col("first_position").min(),
            pl.col("end_position").max(),
            pl.col("tokens").sum(),
            spans=pl.len().cast(pl.Int64),
            loss=(pl.col("loss") * weight).sum(),
            error=pl.col("loss").std() / pl.len().sqrt(),
        )
    )
    spans = cells["spans"].to_numpy()
    quantile = stdtrit(np.maximum(spans - 1, 1), 0.5 + confidence / 2)
    arm = pl.Series(np.where(spans >= 4, quantile, np.nan)).fill_nan(None) * cells["error"]
    middle = ((cells["first_position"] * (cells["end_position"] - 1)).cast(pl.Float64)).sqrt()
    order = {key: pl.Enum(positions[key].unique(maintain_order=True)) for key in _CELL}
    return (
        cells.with_columns(
            position=middle,
            perplexity=_exp(pl.col("loss")),
            ci_low=_exp(pl.col("loss") - arm),
            ci_high=_exp(pl.col("loss") + arm),
        )
        .select(
            *_CELL,
            "first_position",
            "end_position",
            "position",
            "tokens",
            "spans",
            "loss",
            "perplexity",
            "ci_low",
            "ci_high",
        )
        .sort(*(pl.col(key).cast(dtype) for key, dtype in order.items()), "first_position")
    )


def whole_streams(chunks: pl.DataFrame, positions: pl.DataFrame) -> pl.DataFrame:
    """One row per system and stream, all shards pooled.

    Args:
        chunks: system, stream, shard, tokens, tokens_read, text_bytes, characters, loss, mode,
            is_likelihood, out_of_memory, state_bytes.
        positions: as in `by_position`.

    Returns:
        system, stream, mode, is_likelihood (whether the perplexity is one), shards, tokens, chunks,
        chunk_size (tokens of the longest chunk), loss, perplexity, perplexity_second_half (of
        positions beyond half of the last), bits_per_byte and bits_per_character (null if the bytes
        of a chunk are unknown), state_bytes (largest), out_of_memory (how often).
    """
    last = pl.col("end_position").max().over(_CELL)
    second_half = positions.filter(pl.col("first_position") >= last / 2)
    halves = second_half.group_by(_CELL).agg(perplexity_second_half=_exp(_mean_loss()))
    return (
        chunks.group_by(_CELL, maintain_order=True)
        .agg(
            pl.col("mode").first(),
            pl.col("is_likelihood").all(),
            shards=pl.col("shard").n_unique().cast(pl.Int64),
            tokens=pl.col("tokens").sum(),
            chunks=pl.len().cast(pl.Int64),
            chunk_size=pl.col("tokens_read").max(),
            loss=_mean_loss(),
            bits_per_byte=_bits_per("text_bytes"),
            bits_per_character=_bits_per("characters"),
            state_bytes=pl.col("state_bytes").max(),
            out_of_memory=pl.col("out_of_memory").sum(),
        )
        .with_columns(perplexity=_exp(pl.col("loss")))
        .join(halves, on=_CELL, how="left", maintain_order="left")
        .select(
            *_CELL,
            "mode",
            "is_likelihood",
            "shards",
            "tokens",
            "chunks",
            "chunk_size",
            "loss",
            "perplexity",
            "perplexity_second_half",
            "bits_per_byte",
            "bits_per_character",
            "state_bytes",
            "out_of_memory",
        )
    )


def _mean_loss() -> pl.Expr:
    return (pl.col("loss") * pl.col("tokens")).sum() / pl.col("tokens").sum()


def _bits_per(unit: str) -> pl.Expr:
    bits = (pl.col("loss") * pl.col("tokens")).sum() / math.log(2)
    is_known = pl.col(unit).is_not_null().all() & (pl.col(unit).sum() > 0)
    return pl.when(is_known).then(bits / pl.col(unit).sum())


def _exp(loss: pl.Expr) -> pl.Expr:
    # Larger values overflow a float.
    return loss.clip(upper_bound=math.log(1e300)).exp()
