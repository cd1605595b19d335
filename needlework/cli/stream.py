"""`needlework stream`: perplexity of one model on one text, without an experiment file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from needlework.cli.inline_experiment import NAME, inline_experiment
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.evaluator import StreamingEvaluator, fingerprint
from needlework.evaluation.streaming.tables import stream_tables
from needlework.evaluation.streaming.token_source import TokenFile, sized_documents, write_tokens
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.scoring.positions import by_position, whole_streams
from needlework.tasks.prompts.tokenizer import open_tokenizer, start_ids


def evaluate_stream(
    model: dict[str, Any],
    attention: dict[str, Any] | None,
    stream: dict[str, Any],
    folder: Path,
) -> Iterator[str]:
    """Evaluate a stream, as the pipeline does, write its tables, and describe the result.

    Args:
        model, attention, stream: their keys in an experiment file; see `inline_experiment`.
        folder: for chunks.parquet, positions.parquet, measurements.parquet and stream.csv. An
            interrupted run resumes from the state that it saved there.

    Yields:
        Lines of text.

    Raises:
        ValueError: as `inline_experiment`, `folder` holds results already, or the model cannot be
            opened or read the text.
    """
    if (folder / "stream.csv").exists():
        raise ValueError(
            f"{folder}: contains results already; choose another --output or delete it"
        )
    experiment, checkpoint, method = inline_experiment(
        model,
        attention,
        streams={NAME: stream},
        # An experiment must have a task; it is not evaluated.
        tasks={NAME: {"type": "passkey"}},
        lengths=[1],
    )
    text = experiment.streams[NAME]
    assert text.path is not None, "the command line requires a text"
    spec = checkpoint.spec()
    opened, _ = open_model(spec)
    if method is not None and method.converts_model:
        opened, method = convert(opened, method), None
    how = text.read_by(NAME)
    evaluator = StreamingEvaluator(
        opened,
        how.chunk_size,
        how.overlap or 0,
        separate_documents=text.separate_documents,
        adaptive=text.adaptive,
        repeat_first=text.bos == "each_window",
        attention=method,
    )
    folder.mkdir(parents=True, exist_ok=True)
    documents = sized_documents(
        text.path,
        open_tokenizer(spec.path, spec.revision),
        column=text.column,
        split=text.split,
        dtype=text.dtype,
        separator=text.separator,
        special_tokens=text.special_tokens,
        start_ids=start_ids(spec.path, spec.revision, text.bos),
    )
    tokens, sizes = folder / "tokens.npy", folder / "sizes.npy"
    starts = np.array(write_tokens(documents, tokens, text.tokens, sizes), dtype=np.int64)
    key = [fingerprint(opened), repr(method), repr(evaluator.plan), text.model_dump()]
    progress = StreamCheckpoint(folder / "state", json.dumps(key))
    source = TokenFile(tokens, starts=starts)
    tables = stream_tables(
        evaluator,
        source,
        system=NAME,
        stream=NAME,
        shard=0,
        checkpoint=progress,
        sizes=np.load(sizes, mmap_mode="r"),
        starts=starts,
    )
    whole = whole_streams(*tables[:2])
    _write(folder, [tables[0], by_position(tables[1]), tables[2]], whole)
    progress.path.unlink(missing_ok=True)
    seconds = float(tables[2]["seconds"].sum())
    yield from _describe(whole.row(0, named=True), seconds, folder)
    if method is not None and not evaluator.is_likelihood:
        yield (
            "note: not a left-to-right likelihood, since later tokens affect earlier ones; set "
            f"{method.causal_setting}"
        )


def _write(folder: Path, tables: list[pl.DataFrame], whole: pl.DataFrame) -> None:
    """Write each table atomically; stream.csv is last and marks the results as complete."""
    for name, table in zip(("chunks", "positions", "measurements"), tables, strict=True):
        partial = folder / f".partial-{name}.parquet"
        table.write_parquet(partial)
        partial.replace(folder / f"{name}.parquet")
    partial = folder / ".partial-stream.csv"
    whole.write_csv(partial, float_precision=6)
    partial.replace(folder / "stream.csv")


def _describe(row: dict[str, Any], seconds: float, folder: Path) -> Iterator[str]:
    exact = "approximate: windows" if row["mode"] == "strided" else "exact"
    yield f"perplexity: {row['perplexity']:.4f} ({row['loss']:.5f} nats per token)"
    if row["bits_per_byte"] is not None:
        yield (
            f"  {row['bits_per_byte']:.4f} bits per byte, {row['bits_per_character']:.4f} per "
            "character"
        )
    yield f"  mode {row['mode']} ({exact}), chunks of {row['chunk_size']:,} tokens"
    rate = row["tokens"] / seconds
    yield f"  {row['tokens']:,} tokens scored in {seconds:.1f} s, {rate:,.0f} per second"
    yield f"  at most {row['state_bytes'] / 2**20:.2f} MiB of state between chunks"
    yield f"tables: {folder}"
