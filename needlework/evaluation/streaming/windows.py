"""Which tokens the next forward reads, and which of them it scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from needlework.evaluation.streaming.document_reader import Reader


@dataclass(frozen=True)
class Reading:
    """How a text is read."""

    chunk_size: int
    overlap: int = 0
    window_batch_size: int = 1
    adaptive: bool = False
    separate_documents: bool = False
    reach: int = 0
    """Tokens of the model's segment or window, behind which something is left; 0: nothing is."""


@dataclass
class Step:
    """Tokens of one forward."""

    ids: Tensor
    """int64 [windows, n]."""
    targets: Tensor
    """int64 [windows, m]."""
    first: int
    """Index of the logit for the first target."""
    first_token: int
    """Position of the first target of the first window."""
    passed: int
    """Tokens that lie behind once it is done."""


def next_step(reader: Reader, size: int, overlap: int, most: int) -> Step | None:
    """The windows that come next, or None at the document's end.

    Args:
        reader: where the text has been read to.
        size: tokens of a window.
        overlap: tokens that it repeats of the one before.
        most: windows at once.
    """
    # The first window scores all of its tokens, others those behind the overlap.
    most = 1 if overlap and reader.at == 0 else most
    # Without an overlap the last logit is for the first token of the next chunk.
    ahead = 0 if overlap else 1
    stride = size - overlap
    found = torch.from_numpy(reader.ahead(size + (most - 1) * stride + ahead))
    context = overlap if overlap and reader.at else 1
    if len(found) <= context:
        return None
    is_full = len(found) >= size + ahead
    windows = found.unfold(0, size + ahead, stride) if is_full else found[None]
    ids, targets = windows[:, :-1], windows[:, context:]
    passed = min(len(windows) * stride, len(found) - ahead)
    first = ids.shape[1] - targets.shape[1]
    return Step(ids, targets, first, reader.at + context, passed)
