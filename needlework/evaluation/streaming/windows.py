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


def next_windows(
    reader: DocumentReader, size: int, overlap: int, max_windows: int
) -> WindowBatch | None:
    """Read the next windows, or return None at the end of the document.

    Args:
        reader: at the position reached so far.
        size: tokens of a window.
        overlap: tokens that a window shares with the previous one.
        max_windows: maximum number of windows.
    """
    # The first window scores all of its tokens, later ones those after the overlap.
    max_windows = 1 if overlap and reader.position == 0 else max_windows
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
    advance = min(len(windows) * stride, len(tokens) - lookahead)
    first_logit = ids.shape[1] - targets.shape[1]
    return WindowBatch(ids, targets, first_logit, reader.position + context, advance)
