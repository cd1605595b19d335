"""A stream read by a system, as tables."""

from typing import Any

import polars as pl

from needlework.evaluation.streaming.accumulator import Accumulator
from needlework.evaluation.streaming.checkpoint import Journal
from needlework.evaluation.streaming.evaluator import StreamingEvaluator

_WHICH = ("system", "stream", "shard")


def stream_tables(
    evaluator: StreamingEvaluator,
    documents: Any,
    *,
    system: str,
    stream: str,
    shard: int,
    journal: Journal,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Chunks, losses by position, and measurements of one shard.

    A row of the first table is a chunk: system, stream, shard, chunk, document, first_token (its
    position in the document, from 0), tokens (scored), tokens_read, loss (mean, nats), mode,
    out_of_memory (how often, before it went through), state_bytes (carried on). A row of the second
    is a span of positions: first_position, end_position, tokens, loss. The third has seconds and
    memory_bytes (peak on the GPU, or resident) of each chunk.

    Raises:
        ValueError: as StreamingEvaluator.evaluate_streaming; or nothing could be scored.
    """
    accumulator = Accumulator()
    for _ in evaluator.chunks(documents, accumulator=accumulator, journal=journal):
        pass
    if not len(accumulator):
        raise ValueError(
            f"stream {stream}: shard {shard} has no token to score; give documents of two or more"
        )
    which = [
        pl.lit(value).alias(name)
        for name, value in zip(_WHICH, (system, stream, shard), strict=True)
    ]
    chunks = pl.DataFrame(
        {
            "chunk": range(len(accumulator)),
            **{
                k: accumulator[k]
                for k in ("document", "first_token", "tokens", "tokens_read", "loss")
            },
            "mode": evaluator.run.mode,
            "out_of_memory": accumulator["out_of_memory"],
            "state_bytes": accumulator["state_bytes"],
        }
    )
    measured = chunks.select("chunk", "first_token", "tokens").with_columns(
        seconds=pl.Series(accumulator["seconds"]),
        memory_bytes=pl.Series(accumulator["memory_bytes"]),
    )
    return tuple(
        table.select(*which, pl.all()) for table in (chunks, accumulator.positions(), measured)
    )
