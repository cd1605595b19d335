"""Tables of a stream read by a system."""

from typing import Any

import numpy as np
import polars as pl

from needlework.evaluation.streaming.accumulator import Accumulator
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.evaluation.streaming.text_sizes import chunk_sizes


def stream_tables(
    evaluator: StreamingEvaluator,
    documents: Any,
    *,
    system: str,
    stream: str,
    shard: int,
    checkpoint: StreamCheckpoint,
    sizes: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Read one shard; return tables of its chunks, losses by position, and measurements.

    All have the columns system, stream and shard. The first has one row per chunk: chunk,
    document, first_token (its position in the document, from 0), tokens (scored), tokens_read,
    text_bytes and characters (of the text behind the scored tokens; null: unknown), loss (mean,
    nats), mode, is_likelihood (see `StreamingEvaluator`), out_of_memory (failed attempts),
    state_bytes (carried to the next chunk). The second has one row per span of positions:
    first_position, end_position, tokens, loss. The third has seconds and memory_bytes (peak on the
    GPU, or resident) of each chunk.

    Args:
        sizes: bytes and characters of each token of the shard [tokens, 2]; None or empty: unknown.
        starts: index of the first token of each document.

    Raises:
        ValueError: as StreamingEvaluator.evaluate_streaming; or no token could be scored.
    """
    accumulator = Accumulator()
    for _ in evaluator.chunks(documents, accumulator=accumulator, checkpoint=checkpoint):
        pass
    if not len(accumulator):
        raise ValueError(
            f"stream {stream}: shard {shard} has no token to score; it needs a document of two or "
            "more tokens"
        )
    key = {"system": system, "stream": stream, "shard": shard}
    columns = ("document", "first_token", "tokens", "tokens_read")
    text_bytes = characters = [None] * len(accumulator)
    if sizes is not None and starts is not None and len(sizes):
        begins = starts[accumulator["document"]] if evaluator.plan.separate_documents else 0
        text_bytes, characters = chunk_sizes(
            sizes, begins, accumulator["first_token"], accumulator["tokens"]
        ).T
    chunks = pl.DataFrame(
        {
            "chunk": range(len(accumulator)),
            **{column: accumulator[column] for column in columns},
            "text_bytes": pl.Series(text_bytes, dtype=pl.Int64),
            "characters": pl.Series(characters, dtype=pl.Int64),
            "loss": accumulator["loss"],
            "mode": evaluator.run.mode,
            "is_likelihood": evaluator.is_likelihood,
            "out_of_memory": accumulator["out_of_memory"],
            "state_bytes": accumulator["state_bytes"],
        }
    )
    measurements = chunks.select("chunk", "first_token", "tokens").with_columns(
        seconds=pl.Series(accumulator["seconds"]),
        memory_bytes=pl.Series(accumulator["memory_bytes"]),
    )

    def with_key(table: pl.DataFrame) -> pl.DataFrame:
        return table.select(*(pl.lit(value).alias(name) for name, value in key.items()), pl.all())

    return with_key(chunks), with_key(accumulator.positions()), with_key(measurements)
