"""Results of a run: one row per chunk, and losses by position."""

from array import array
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

SPANS_PER_OCTAVE = 16
"""Equal spans per doubling of the position; below 16, one span per position."""
_SPANS = 64 * SPANS_PER_OCTAVE


@dataclass(frozen=True)
class Chunk:
    """Results of one chunk of a text."""

    document: int
    first_token: int
    """Position in the document, from 0, of the first scored token."""
    losses: Tensor
    """Of the scored tokens, float32 [tokens], in nats."""
    tokens_read: int
    """Tokens given to the model."""
    out_of_memory: int
    """Failed attempts, each followed by a smaller chunk or a retry."""
    state_bytes: int
    """Size of the state carried to the next chunk."""
    seconds: float
    memory_bytes: int
    """Peak allocated on the GPU, or resident."""

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return len(self.losses)


_COLUMNS = {
    "document": "q",
    "first_token": "q",
    "tokens": "q",
    "tokens_read": "q",
    "loss": "d",
    "out_of_memory": "q",
    "state_bytes": "q",
    "seconds": "d",
    "memory_bytes": "q",
}
"""Numbers kept per chunk, with their `array` type code."""


class Accumulator:
    """Accumulates chunks in a few numbers each, without losses by token."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {
            name: array(code, ()) for name, code in _COLUMNS.items()
        }
        self._tokens = torch.zeros(_SPANS, dtype=torch.int64)
        self._sums = torch.zeros(_SPANS, dtype=torch.float64)

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        losses = chunk.losses.double()
        for name, column in self._columns.items():
            column.append(float(losses.mean()) if name == "loss" else getattr(chunk, name))
        spans = span_of(torch.arange(chunk.first_token, chunk.first_token + chunk.tokens))
        self._tokens += torch.bincount(spans, minlength=_SPANS)
        self._sums += torch.bincount(spans, losses, minlength=_SPANS)

    def __getitem__(self, column: str) -> np.ndarray:
        """One number per chunk: document, first_token, tokens, tokens_read, loss (mean, nats),
        out_of_memory, state_bytes, seconds, memory_bytes."""
        return np.array(self._columns[column])

    def __len__(self) -> int:
        return len(self._columns["loss"])

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self._tokens.sum())

    @property
    def loss(self) -> float:
        """Mean over all scored tokens in nats; NaN if there are none."""
        tokens = self.tokens
        return float(self["loss"] @ self["tokens"]) / tokens if tokens else float("nan")

    def positions(self) -> pl.DataFrame:
        """One row per span of positions that has tokens: first_position, end_position (exclusive),
        tokens, loss (mean, nats)."""
        spans = torch.nonzero(self._tokens)[:, 0]
        octave, part = spans // SPANS_PER_OCTAVE, spans % SPANS_PER_OCTAVE
        width = (2**octave // SPANS_PER_OCTAVE).clamp_min(1)
        first = 2**octave + part * width
        return pl.DataFrame(
            {
                "first_position": first.numpy(),
                "end_position": (first + width).numpy(),
                "tokens": self._tokens[spans].numpy(),
                "loss": (self._sums[spans] / self._tokens[spans]).numpy(),
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """The accumulator's content, for a checkpoint."""
        columns = {name: torch.from_numpy(self[name]) for name in _COLUMNS}
        return {**columns, "spans.tokens": self._tokens, "spans.sums": self._sums}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Replace the content by that of `tensors()`."""
        self._tokens, self._sums = tensors["spans.tokens"].clone(), tensors["spans.sums"].clone()
        for name, code in _COLUMNS.items():
            self._columns[name] = array(code, tensors[name].tolist())


def span_of(positions: Tensor) -> Tensor:
    """Index of the span of each position (from 1, int64)."""
    octave = torch.frexp(positions.double()).exponent.long() - 1
    start = 2**octave
    offset = positions - start
    part = torch.where(octave < 4, offset, offset * SPANS_PER_OCTAVE // start)
    return octave * SPANS_PER_OCTAVE + part
