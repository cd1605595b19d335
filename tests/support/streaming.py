"""Reference losses and evaluators for tests of streaming."""

import numpy as np
import torch
from support.streamed_models import VOCABULARY

from needlework.config.attention.window import Window
from needlework.evaluation import StreamingEvaluator

WINDOW = Window(block_size=16, dense_layers=0, sink_tokens=3, recent_tokens=50)


def random_ids(tokens: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without special ones, int64 [tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (tokens,), generator=generator)


@torch.no_grad()
def one_pass_losses(model, ids: torch.Tensor, start: int = 0) -> list[float]:
    """Losses of ids[1:] (or from ids[start] on) in one pass."""
    if hasattr(model, "reset_state"):
        model.reset_state()
    logits = model(ids[None])
    logits = logits.logits if hasattr(logits, "logits") else logits
    logits = (logits if isinstance(logits, torch.Tensor) else logits[0])[0].double()
    return [
        float(logits[t - 1].logsumexp(0) - logits[t - 1, ids[t]])
        for t in range(max(1, start), len(ids))
    ]


def strided_losses(model, ids: torch.Tensor, window: int, overlap: int) -> list[float]:
    """Losses of overlapping windows; the first window that contains a token scores it."""
    losses, scored = [], 1
    for start in range(0, len(ids), window - overlap):
        end = min(start + window, len(ids))
        losses += one_pass_losses(model, ids[start:end], scored - start)
        scored = end
        if end == len(ids):
            return losses
    return losses


def evaluator_of(model, chunk_size=None, overlap=0, **kwargs) -> StreamingEvaluator:
    """A quiet evaluator on the CPU."""
    return StreamingEvaluator(model, chunk_size, overlap, "cpu", False, **kwargs)


def evaluate_with_losses(evaluator: StreamingEvaluator, data, max_tokens=None) -> dict:
    """Results with losses by token."""
    results = evaluator.evaluate_streaming_with_metrics(data, max_tokens, True)
    assert len(results["per_token_losses"]) == results["total_tokens"]
    return results


IDS = np.random.default_rng(0).integers(3, 61, 500)
"""Token ids of the tests of token sources and documents."""


def text_of(ids) -> str:
    """Text of token ids, for a tokenizer of the words w1, w2, ..."""
    return " ".join(f"w{i}" for i in ids)


def read_documents(documents) -> list[list[int]]:
    """Token ids of each document, joined from its pieces."""
    return [np.concatenate([*document]).tolist() for document in documents]
