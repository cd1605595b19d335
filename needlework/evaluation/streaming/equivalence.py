"""Whether a model that reads in chunks says what it says when it reads at once."""

import torch
from torch import Tensor, nn

from needlework.evaluation.streaming.kv_state import InCache, KVState, start_of_segments
from needlework.evaluation.streaming.token_losses import TokenLosses
from needlework.runtime.memory import retry_on_oom

MOST_TOKENS = 9216
MOST_LOGITS = 2**27
MOST_CHUNKS = 256
_TRIES = 5
LARGEST_DIFFERENCE = 1e-3
"""Of any token's loss in float32, in nats."""
LARGEST_MEAN_DIFFERENCE = 0.03
"""Of the losses in half precision, whose every sum is rounded otherwise."""


def tokens_to_check(chunk: int, reach: int, vocabulary: int) -> int:
    """How long a text shows what chunks do: some of them, and more than twice the model's reach.

    Args:
        chunk: tokens a chunk.
        reach: tokens of a segment or window, beyond which something is left behind; 0: nothing is.
        vocabulary: number of ids.
    """
    wanted = max(64, 3 * chunk, 2 * reach + reach // 4)
    return max(8, min(wanted, MOST_TOKENS, MOST_LOGITS // vocabulary, MOST_CHUNKS * chunk))


@torch.no_grad()
def check(losses: TokenLosses, carried: KVState, ids: Tensor, chunk: int, granule: int) -> None:
    """Compare losses by token in chunks and at once; `carried` is reset.

    Chunks are those of the run, or a third of the text (a multiple of `granule`) if that is less;
    the text is shortened to what memory allows. Where logits in slices are what differs, whole
    ones are used from here on.

    Args:
        ids: int64 [1, n].

    Raises:
        ValueError: they differ.
        MemoryError: memory is too small even for an eighth of the text.
    """
    lengths = [max(2, ids.shape[1] >> halved) for halved in range(4)]
    retry_on_oom(
        lambda attempt: _check(losses, carried, ids[:, : lengths[attempt]], chunk, granule),
        len(lengths),
    )


def _check(losses: TokenLosses, carried: KVState, ids: Tensor, chunk: int, granule: int) -> None:
    ids, targets = ids[:, :-1], ids[:, 1:]
    third = max(granule, ids.shape[1] // 3 // granule * granule)
    chunk = min(chunk, third)
    carried.reset()
    plain = {"use_cache": False} if isinstance(carried, InCache) else {}
    plain |= start_of_segments(losses.model)
    at_once, _ = retry_on_oom(
        lambda _: losses.whole(ids, targets, **plain), _TRIES, undo=carried.reset
    )
    said = _difference(losses.model, at_once, _in_chunks(losses, carried, ids, targets, chunk))
    if said is not None and losses.in_slices:
        losses.in_slices = False
        said = _difference(losses.model, at_once, _in_chunks(losses, carried, ids, targets, chunk))
    carried.reset()
    if said is not None:
        raise ValueError(
            f"{type(losses.model).__name__}: read in chunks of {chunk} tokens it gives other "
            f"losses than read at once, {said} of {ids.shape[1]}; its state is not exact for such "
            "chunks: set an overlap, which reads windows anew (strided), or another chunk_size"
        )


def _in_chunks(
    losses: TokenLosses, carried: KVState, ids: Tensor, targets: Tensor, chunk: int
) -> Tensor:
    carried.reset()
    found = []
    for part, wanted in zip(ids.split(chunk, 1), targets.split(chunk, 1), strict=True):
        found.append(_patient(losses, carried, part, wanted))
    return torch.cat(found, 1)


def _patient(losses: TokenLosses, carried: KVState, part: Tensor, wanted: Tensor) -> Tensor:
    before, tokens = carried.snapshot(brief=True), part.shape[1]
    found, output = retry_on_oom(
        lambda _: losses(part, wanted, **carried.arguments(tokens)),
        _TRIES,
        undo=lambda: carried.restore(before),
    )
    carried.take(output, tokens)
    return found


def _difference(model: nn.Module, at_once: Tensor, in_chunks: Tensor) -> str | None:
    """What is too far apart, in words. NaN is a fault of another kind, told when it is met."""
    apart = (at_once - in_chunks).abs().nan_to_num(0.0)
    is_half = any(x.dtype in (torch.float16, torch.bfloat16) for x in model.parameters())
    if is_half and apart.mean() > LARGEST_MEAN_DIFFERENCE:
        return f"by {apart.mean():.3g} in the mean"
    if not is_half and apart.max() > LARGEST_DIFFERENCE:
        return f"by {apart.max():.3g} at token {int(apart.argmax()) + 1}"
    return None
