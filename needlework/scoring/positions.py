"""Perplexity against position, with intervals, from losses by span of positions."""

import math

import numpy as np
import polars as pl
from scipy.special import stdtrit

_CELL = ["system", "stream"]


def by_position(positions: pl.DataFrame, confidence: float = 0.95) -> pl.DataFrame:
    """Perplexity of each doubling of the position.

    Args:
        positions: system, stream, shard, first_position, end_position, tokens, loss (mean, nats):
            spans that are sixteenths of a doubling, as stream_perplexity makes them.

    Returns:
        system, stream, first_position, end_position (not in it), position (the geometric middle),
        tokens, spans (of all shards), loss, perplexity, ci_low, ci_high. The interval is Student's t over
        the means of the spans, weighed alike ("batch means": tokens of one span may hang together,
        spans hardly do); empty where there are fewer than four. A doubling that the text only began
        ends where the text does. Rows are in the order of `positions`, then of position.
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
    reach = stdtrit(np.maximum(spans - 1, 1), 0.5 + confidence / 2)
    reach = pl.Series(np.where(spans >= 4, reach, np.nan)).fill_nan(None) * cells["error"]
    middle = ((cells["first_position"] * (cells["end_position"] - 1)).cast(pl.Float64)).sqrt()
    order = {key: pl.Enum(positions[key].unique(maintain_order=True)) for key in _CELL}
    return (
        cells.with_columns(
            position=middle,
            perplexity=_exp(pl.col("loss")),
            ci_low=_exp(pl.col("loss") - reach),
            ci_high=_exp(pl.col("loss") + reach),
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
        .sort(*(pl.col(key).cast(kind) for key, kind in order.items()), "first_position")
    )


def whole_streams(chunks: pl.DataFrame, positions: pl.DataFrame) -> pl.DataFrame:
    """A row a system and stream, all shards together.

    Args:
        chunks: system, stream, shard, tokens, tokens_read, loss, mode, out_of_memory, state_bytes.
        positions: as `by_position` takes them.

    Returns:
        system, stream, mode, shards, tokens, chunks, chunk_size (tokens read by the longest),
        loss, perplexity, perplexity_second_half (of positions beyond half of the last), state_bytes
        (most carried), out_of_memory (how often).
    """
    last = pl.col("end_position").max().over(_CELL)
    late = positions.filter(pl.col("first_position") >= last / 2)
    halves = late.group_by(_CELL).agg(perplexity_second_half=_exp(_mean()))
    return (
        chunks.group_by(_CELL, maintain_order=True)
        .agg(
            pl.col("mode").first(),
            shards=pl.col("shard").n_unique().cast(pl.Int64),
            tokens=pl.col("tokens").sum(),
            chunks=pl.len().cast(pl.Int64),
            chunk_size=pl.col("tokens_read").max(),
            loss=_mean(),
            state_bytes=pl.col("state_bytes").max(),
            out_of_memory=pl.col("out_of_memory").sum(),
        )
        .with_columns(perplexity=_exp(pl.col("loss")))
        .join(halves, on=_CELL, how="left", maintain_order="left")
        .select(
            *_CELL,
            "mode",
            "shards",
            "tokens",
            "chunks",
            "chunk_size",
            "loss",
            "perplexity",
            "perplexity_second_half",
            "state_bytes",
            "out_of_memory",
        )
    )


def _mean() -> pl.Expr:
    return (pl.col("loss") * pl.col("tokens")).sum() / pl.col("tokens").sum()


def _exp(loss: pl.Expr) -> pl.Expr:
    # Beyond, a float has no room.
    return loss.clip(upper_bound=math.log(1e300)).exp()
