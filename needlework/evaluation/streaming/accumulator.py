"""What a run through a text leaves: a row a chunk, and losses by position."""

from array import array
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

PARTS = 16
"""Equal spans that each doubling of the position is divided into; below 16 a position each."""
_SPANS = 64 * PARTS


@dataclass(frozen=True)
class Chunk:
    """One forward's share of a text."""

    document: int
    first_token: int
    """Position in the document, from 0, of the first token scored."""
    losses: Tensor
    """Of the tokens scored, float32 [tokens], in nats."""
    tokens_read: int
    """Tokens that the model was given."""
    out_of_memory: int
    """How often memory ran out before the chunk, each time made smaller, went through."""
    state_bytes: int
    """Bytes carried on from the chunk."""
    seconds: float
    memory_bytes: int
    """Peak allocated on the GPU, or resident."""

    @property
    def tokens(self) -> int:
        """Tokens scored."""
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
"""Of a chunk: the name and the `array` type of each number that is held."""


class Accumulator:
    """Chunks, counted as they come; a few numbers a chunk are held, no losses of tokens."""

    def __init__(self) -> None:
        self._held = {name: array(kind) for name, kind in _COLUMNS.items()}
        self._tokens = torch.zeros(_SPANS, dtype=torch.int64)
        self._sums = torch.zeros(_SPANS, dtype=torch.float64)

    def add(self, chunk: Chunk) -> None:
        """Count one more chunk."""
        losses = chunk.losses.double()
        for name, column in self._held.items():
            column.append(float(losses.mean()) if name == "loss" else getattr(chunk, name))
        spans = span_of(torch.arange(chunk.first_token, chunk.first_token + chunk.tokens))
        self._tokens += torch.bincount(spans, minlength=_SPANS)
        self._sums += torch.bincount(spans, losses, minlength=_SPANS)

    def __getitem__(self, column: str) -> np.ndarray:
        """A number a chunk: document, first_token, tokens, tokens_read, loss (mean, nats),
        out_of_memory, state_bytes, seconds, memory_bytes."""
        return np.array(self._held[column])

    def __len__(self) -> int:
        return len(self._held["loss"])

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return int(self._tokens.sum())

    @property
    def loss(self) -> float:
        """Mean over all tokens scored, nats; NaN where there is none."""
        tokens = self.tokens
        return float(self["loss"] @ self["tokens"]) / tokens if tokens else float("nan")

    def positions(self) -> pl.DataFrame:
        """A row a span of positions that has tokens: first_position, end_position (not in it),
        tokens, loss (mean, nats)."""
        spans = torch.nonzero(self._tokens)[:, 0]
        octave, part = spans // PARTS, spans % PARTS
        width = (2**octave // PARTS).clamp_min(1)
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
        """All that is held."""
        rows = {name: torch.from_numpy(self[name]) for name in _COLUMNS}
        return {**rows, "spans.tokens": self._tokens, "spans.sums": self._sums}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """`tensors` undone."""
        self._tokens, self._sums = tensors["spans.tokens"].clone(), tensors["spans.sums"].clone()
        for name, kind in _COLUMNS.items():
            self._held[name] = array(kind, tensors[name].tolist())


def span_of(positions: Tensor) -> Tensor:
    """The span that each position (from 1, int64) falls into."""
    octave = torch.frexp(positions.double()).exponent.long() - 1
    start = 2**octave
    part = torch.where(octave < 4, positions - start, (positions - start) * PARTS // start)
    return octave * PARTS + part
