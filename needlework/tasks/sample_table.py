"""The table of samples: its columns, and reading it row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

_NEEDLE = pl.Struct(
    {
        "key": pl.String(),
        "value": pl.String(),
        "depth_percent": pl.Float64(),
        "token_position": pl.Int64(),
    }
)
_MESSAGE = pl.Struct({"role": pl.String(), "content": pl.String()})
SAMPLE_SCHEMA: dict[str, pl.DataType] = {
    "task": pl.String(),
    "length": pl.Int64(),
    "sample": pl.Int64(),
    "seed": pl.Int64(),
    "context": pl.String(),
    "question": pl.String(),
    "answer_prefix": pl.String(),
    "prompt": pl.String(),
    "control_spans": pl.List(pl.List(pl.Int64())),
    "spelled_tokens": pl.Int64(),
    "history": pl.List(_MESSAGE),
    "messages": pl.List(_MESSAGE),
    "outputs": pl.List(pl.String()),
    "required_prefix": pl.String(),
    "value_type": pl.String(),
    "needles": pl.List(_NEEDLE),
    "tokens": pl.Int64(),
    "max_new_tokens": pl.Int64(),
}
"""Columns of a table of samples, one row per sample.

control_spans: start and end, in characters of the prompt, of the chat template's special tokens;
other text that spells one is text (null: it is the token). spelled_tokens: how often it does so.
history: messages before the last one, to which context and question belong. required_prefix: what a
right answer starts with, for the metric prefix_ratio.
"""


def iterate_samples(path: str | Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read samples one at a time, because those of long prompts do not fit in memory together."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1, columns=list(columns)):
            yield from batch.to_pylist()
