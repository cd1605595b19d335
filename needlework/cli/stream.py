"""`needlework stream`: perplexity of one model along one text, and where the numbers lie."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from needlework.cli.inline_experiment import NAME, experiment_of
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.evaluator import StreamingEvaluator, fingerprint
from needlework.evaluation.streaming.tables import stream_tables
from needlework.evaluation.streaming.token_source import TokenFile, token_documents, write_tokens
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.scoring.positions import by_position, whole_streams
from needlework.tasks.prompts.tokenizer import open_tokenizer


def read(
    model: dict[str, Any],
    attention: dict[str, Any] | None,
    stream: dict[str, Any],
    folder: Path,
) -> Iterator[str]:
    """Read a text as the stages do, write their tables, and give the lines that tell the result.

    Args:
        model, attention, stream: keys as in an experiment file; see `experiment_of`.
        folder: gets chunks.parquet, positions.parquet, measurements.parquet, stream.csv; a run that
            was killed goes on from the state that it left there.

    Raises:
        ValueError: what the user has to mend; or there are results already.
    """
    if (folder / "stream.csv").exists():
        raise ValueError(f"{folder}: holds results already; name another --output, or delete it")
    experiment, attention = experiment_of(
        model,
        attention,
        streams={NAME: stream},
        # No question is asked.
        tasks={NAME: {"type": "passkey"}},
        lengths=[1],
    )
    entry, text = experiment.models[NAME], experiment.streams[NAME]
    opened, _ = open_model(
        entry.path,
        dtype=entry.dtype,
        revision=entry.revision,
        allow_pickle=entry.allow_pickle,
        opening=entry.opening,
    )
    if attention is not None and attention.converts_model:
        opened, attention = convert(opened, attention), None
    how = text.read_by(NAME)
    evaluator = StreamingEvaluator(
        opened,
        how.chunk_size,
        how.overlap,
        separate_documents=text.separate_documents,
        adaptive=text.adaptive,
        attention=attention,
    )
    folder.mkdir(parents=True, exist_ok=True)
    documents = token_documents(
        text.path,
        open_tokenizer(entry.path, entry.revision),
        column=text.column,
        split=text.split,
        dtype=text.dtype,
        separator=text.separator,
    )
    tokens = folder / "tokens.npy"
    starts = write_tokens(documents, tokens, text.tokens)
    key = [fingerprint(opened), repr(attention), repr(evaluator.plan), text.model_dump()]
    checkpoint = StreamCheckpoint(folder / "state", json.dumps(key))
    source = TokenFile(tokens, starts=np.array(starts, dtype=np.int64))
    which = {"system": NAME, "stream": NAME, "shard": 0}
    tables = stream_tables(evaluator, source, **which, checkpoint=checkpoint)
    whole = whole_streams(*tables[:2])
    _write(folder, [tables[0], by_position(tables[1]), tables[2]], whole)
    checkpoint.path.unlink(missing_ok=True)
    yield from _told(whole.row(0, named=True), tables[2]["seconds"].sum(), folder)


def _write(folder: Path, tables: list[pl.DataFrame], whole: pl.DataFrame) -> None:
    """Each whole or not at all, and the sign that all are there last."""
    for name, table in zip(("chunks", "positions", "measurements"), tables, strict=True):
        partial = folder / f".partial-{name}.parquet"
        table.write_parquet(partial)
        partial.replace(folder / f"{name}.parquet")
    partial = folder / ".partial-stream.csv"
    whole.write_csv(partial, float_precision=6)
    partial.replace(folder / "stream.csv")


def _told(row: dict[str, Any], seconds: float, folder: Path) -> Iterator[str]:
    exact = "an approximation: windows" if row["mode"] == "strided" else "exact"
    yield f"perplexity: {row['perplexity']:.4f} ({row['loss']:.5f} nats a token)"
    yield f"  mode {row['mode']} ({exact}), chunks of {row['chunk_size']:,} tokens"
    rate = row["tokens"] / seconds
    yield f"  {row['tokens']:,} tokens scored in {seconds:.1f} s, {rate:,.0f} a second"
    yield f"  {row['state_bytes'] / 2**20:.2f} MiB carried on at most"
    yield f"tables: {folder}"
