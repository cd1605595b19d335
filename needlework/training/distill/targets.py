"""What gates learn to tell: the largest attention probability in each tile of a block of keys.

The probabilities are computed a few rows at a time and never held whole, so that memory grows with
blocks, not with tokens squared.
"""

import torch
from torch import Tensor

from needlework.attention.blocks import Blocks
from needlework.attention.kernels.gather import Terms

PROBABILITIES_AT_ONCE = 2**18
"""Largest number of probabilities computed together, unless one row has more."""


def prefill_targets(
    query: Tensor, key: Tensor, blocks: Blocks, terms: Terms, rows: Tensor
) -> Tensor:
    """Attention max-pooled over each tile of a row's queries and a block's keys, by query head.

    Args:
        query: after RoPE [batch, heads, tokens, d].
        key: after RoPE [batch, kv heads, tokens, d].
        blocks: the blocks of this forward.
        terms: scaling, softcap and sinks of the layer.
        rows: which rows of blocks are asked for, ascending [n] int64.

    Returns:
        [batch, heads, n, blocks] float32, each row of sum 1; 0 where a row has no token.
    """
    queries = blocks.of_queries(query)[:, :, rows].unflatten(1, (key.shape[1], -1))
    positions = blocks.number[:, rows, None] * blocks.size + blocks.token
    positions = positions.masked_fill(~blocks.is_new[:, rows], -1)
    return _pooled(queries, key, positions, blocks, terms, over=4).flatten(1, 2)


def decode_targets(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: Terms
) -> Tensor:
    """Attention of single tokens max-pooled over a block's keys and the query heads of a kv head.

    Args:
        query: after RoPE, of the tokens asked for [batch, heads, queries, d].
        key: after RoPE [batch, kv heads, tokens, d].
        positions: of the queries, counted from each row's first real token [batch, queries] int64.
        blocks: the blocks of this forward.
        terms: scaling, softcap and sinks of the layer.

    Returns:
        [batch, kv heads, queries, blocks] float32, each row of sum 1.
    """
    queries = query.unflatten(1, (key.shape[1], -1))[..., None, :]
    return _pooled(queries, key, positions[..., None], blocks, terms, over=2)[..., 0, :]


def _pooled(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: Terms, over: int
) -> Tensor:
    """Maxima over a block's keys and dimension `over`, rows of sum 1.

    query [batch, kv heads, group, rows, t, d], positions [batch, rows, t], -1 for no query. Returns
    [batch, kv heads, group, rows, t, blocks] without dimension `over`.
    """
    keys = blocks.of_keys(key.float()).flatten(2, 3)
    at_once = query[:, :, :, 0, :, 0].numel() * keys.shape[2]
    together = max(1, PROBABILITIES_AT_ONCE // at_once)
    found = []
    for asks, at in zip(query.split(together, 3), positions.split(together, 1), strict=True):
        # No query of these rows sees a later block.
        seen = max(1, int(at.max()) // blocks.size + 1)
        weights = _probabilities(asks.float(), keys[:, :, : seen * blocks.size], at, blocks, terms)
        tiles = weights.unflatten(-1, (seen, blocks.size)).amax((over, -1))
        found.append(torch.nn.functional.pad(tiles, (0, blocks.count - seen)))
    tiles = torch.cat(found, 3 if over > 3 else 2)
    return tiles / tiles.sum(-1, keepdim=True).clamp_min(torch.finfo(tiles.dtype).tiny)


def _probabilities(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: Terms
) -> Tensor:
    """[batch, kv heads, group, rows, t, n] of key [batch, kv heads, n, d], 0 for no query."""
    # One product for all rows: a broadcast one would copy the keys for each.
    logits = query.flatten(2, 4) @ key.transpose(-1, -2) * terms.scaling
    logits = logits.unflatten(2, query.shape[2:5])
    if terms.softcap is not None:
        logits = torch.tanh(logits / terms.softcap) * terms.softcap
    at = torch.arange(key.shape[2], device=key.device)
    allowed = at <= positions[..., None]
    if not blocks.mask.is_causal:
        first = blocks.first.view(-1, 1, 1, 1)
        rows = torch.arange(len(first), device=key.device).view(-1, 1, 1, 1)
        allowed = allowed & blocks.mask.at(rows, first + positions[..., None], first + at)
    allowed = allowed[:, None, None]
    logits = logits.masked_fill(~allowed, -torch.inf)
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(1, *query.shape[1:3], 1, 1, 1)
        logits = torch.cat([logits, sinks.expand(*logits.shape[:-1], 1)], -1)
    return logits.softmax(-1)[..., : key.shape[2]].masked_fill(~allowed, 0)
