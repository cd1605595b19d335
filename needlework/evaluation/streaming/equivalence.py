"""Check that losses of chunks equal those of one pass."""

from typing import Any

import torch
from torch import Tensor, nn

from needlework.evaluation.streaming.kv_state import (
    KVState,
    TransformersCacheState,
    segment_arguments,
)
from needlework.evaluation.streaming.token_losses import TokenLosses
from needlework.runtime.memory import retry_on_oom

MAX_TOKENS = 9216
MAX_LOGITS = 2**27
MAX_CHUNKS = 256
_ATTEMPTS = 5
MAX_DIFFERENCE = 1e-3
"""Of the loss of any token in float32, in nats."""
MAX_MEAN_DIFFERENCE = 0.03
"""Of the mean loss in half precision, where every sum is rounded differently."""


def tokens_to_check(chunk: int, context_span: int, vocabulary: int) -> int:
    """Length of a text that shows the effect of chunks: several of them, and more than two spans.

    Args:
        chunk: tokens per chunk.
        context_span: tokens of a segment or sliding window; 0: none.
        vocabulary: number of ids.
    """
    tokens = max(64, 3 * chunk, 2 * context_span + context_span // 4)
    return max(8, min(tokens, MAX_TOKENS, MAX_LOGITS // vocabulary, MAX_CHUNKS * chunk))


@torch.no_grad()
def require_equivalence(
    losses: TokenLosses, kv_state: KVState, ids: Tensor, chunk: int, multiple: int
) -> None:
    """Compare the losses of chunks with those of one pass; resets `kv_state`.

    Chunks are those of the run, or a third of the text if that is less. The text is shortened if
    memory runs out. If computing logits in slices causes the difference, it is turned off.

    Args:
        ids: int64 [1, n].
        chunk: tokens per chunk.
        multiple: chunks are a multiple of this number of tokens.

    Raises:
        ValueError: the losses differ.
        MemoryError: memory does not suffice for an eighth of the text.
    """
    lengths = [max(2, ids.shape[1] >> halvings) for halvings in range(4)]
    retry_on_oom(
        lambda attempt: _compare(losses, kv_state, ids[:, : lengths[attempt]], chunk, multiple),
        len(lengths),
    )


def _compare(
    losses: TokenLosses, kv_state: KVState, ids: Tensor, chunk: int, multiple: int
) -> None:
    ids, targets = ids[:, :-1], ids[:, 1:]
    third = max(multiple, ids.shape[1] // 3 // multiple * multiple)
    chunk = min(chunk, third)
    kv_state.reset()
    is_cache = isinstance(kv_state, TransformersCacheState)
    arguments: dict[str, Any] = {"use_cache": False} if is_cache else {}
    arguments |= segment_arguments(losses.model)
    one_pass, _ = retry_on_oom(
        lambda _: losses.whole(ids, targets, **arguments), _ATTEMPTS, undo=kv_state.reset
    )
    in_chunks = _losses_of_chunks(losses, kv_state, ids, targets, chunk)
    difference = _difference(losses.model, one_pass, in_chunks)
    if difference is not None and losses.in_slices:
        losses.in_slices = False
        in_chunks = _losses_of_chunks(losses, kv_state, ids, targets, chunk)
        difference = _difference(losses.model, one_pass, in_chunks)
    kv_state.reset()
    if difference is not None:
        raise ValueError(
            f"{type(losses.model).__name__}: losses in chunks of {chunk} tokens differ from those "
            f"of one pass {difference} of {ids.shape[1]}; its state is not exact for such chunks: "
            "set an overlap to read independent windows (strided), or another chunk_size"
        )


def _losses_of_chunks(
    losses: TokenLosses, kv_state: KVState, ids: Tensor, targets: Tensor, chunk: int
) -> Tensor:
    kv_state.reset()
    parts = zip(ids.split(chunk, 1), targets.split(chunk, 1), strict=True)
    return torch.cat([_losses_of_chunk(losses, kv_state, *part) for part in parts], 1)


def _losses_of_chunk(
    losses: TokenLosses, kv_state: KVState, ids: Tensor, targets: Tensor
) -> Tensor:
    before, tokens = kv_state.snapshot(temporary=True), ids.shape[1]
    values, output = retry_on_oom(
        lambda _: losses(ids, targets, **kv_state.forward_arguments(tokens)),
        _ATTEMPTS,
        undo=lambda: kv_state.restore(before),
    )
    kv_state.update(output, tokens)
    return values


def _difference(model: nn.Module, one_pass: Tensor, in_chunks: Tensor) -> str | None:
    """Describe a difference beyond the tolerance. NaN is reported by the run itself."""
    difference = (one_pass - in_chunks).abs().nan_to_num(0.0)
    is_half = any(x.dtype in (torch.float16, torch.bfloat16) for x in model.parameters())
    if is_half and difference.mean() > MAX_MEAN_DIFFERENCE:
        return f"by {difference.mean():.3g} in the mean"
    if not is_half and difference.max() > MAX_DIFFERENCE:
        return f"by {difference.max():.3g} at token {int(difference.argmax()) + 1}"
    return None
