"""Which tokens the next forward reads, and which of them it scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from needlework.evaluation.streaming.document_reader import DocumentReader


@dataclass(frozen=True)
class ReadingPlan:
    """Settings of a run through a text."""

    chunk_size: int
    overlap: int = 0
    window_batch_size: int = 1
    adaptive: bool = False
    separate_documents: bool = False
    context_span: int = 0
    """Tokens of the model's segment or sliding window; 0: it has neither."""
    repeat_first: bool = False
    """Whether each window starts with the document's first token, BOS."""


@dataclass
class WindowBatch:
    """Input and targets of one forward."""

    ids: Tensor
    """int64 [windows, n]."""
    targets: Tensor
    """int64 [windows, m]."""
    first_logit: int
    """Index of the logit for the first target."""
    first_token: int
    """Position of the first target of the first window."""
    advance: int
    """Tokens to advance by after this forward."""
    stride: int = 0
    """Tokens from the start of a window to that of the next."""


def next_windows(
    reader: DocumentReader, size: int, overlap: int, max_windows: int, repeat_first: bool = False
) -> WindowBatch | None:
    """Read the next windows, or return None at the end of the document.

    Args:
        reader: at the position reached so far.
        size: tokens of a window.
        overlap: tokens that a window shares with the previous one.
        max_windows: maximum number of windows.
        repeat_first: put the document's first token before the tokens of later windows.
    """
    # The first window scores all of its tokens, later ones those after the overlap.
    is_first = reader.position == 0
    max_windows = 1 if is_first and (overlap or repeat_first) else max_windows
    repeats = repeat_first and not is_first
    size -= 1 if repeats else 0
    # Without an overlap the last logit is for the first token of the next chunk.
    lookahead = 0 if overlap else 1
    stride = size - overlap
    tokens = torch.from_numpy(reader.peek(size + (max_windows - 1) * stride + lookahead))
    context = overlap if overlap and reader.position else 1
    if len(tokens) <= context:
        return None
    is_full = len(tokens) >= size + lookahead
    windows = tokens.unfold(0, size + lookahead, stride) if is_full else tokens[None]
    ids, targets = windows[:, :-1], windows[:, context:]
    if repeats:
        ids = torch.cat([torch.full((len(ids), 1), reader.first), ids], 1)
    advance = min(len(windows) * stride, len(tokens) - lookahead)
    first_logit = ids.shape[1] - targets.shape[1]
    return WindowBatch(ids, targets, first_logit, reader.position + context, advance, stride)
