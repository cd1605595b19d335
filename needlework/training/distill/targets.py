"""Distillation targets of gates: attention probabilities, max-pooled over blocks of keys.

Probabilities are computed a few rows at a time, so that memory grows with the number of blocks, not
with the square of the number of tokens.
"""

import torch
from torch import Tensor

from needlework.attention.blocks import Blocks
from needlework.attention.kernels.gather import SoftmaxTerms

MAX_PROBABILITIES = 2**18
"""Largest number of probabilities computed together; a single row may exceed it."""


def prefill_targets(
    query: Tensor, key: Tensor, blocks: Blocks, terms: SoftmaxTerms, rows: Tensor
) -> Tensor:
    """Attention of each query head, max-pooled over tiles: a row's queries by a block's keys.

    Args:
        query: after RoPE [batch, heads, tokens, d].
        key: after RoPE [batch, kv heads, tokens, d].
        blocks: the blocks of this forward.
        terms: scaling, softcap and sinks of the layer.
        rows: rows of blocks to compute, ascending [n] int64.

    Returns:
        [batch, heads, n, blocks] float32; each row sums to 1, or is 0 where it has no token.
    """
    queries = blocks.of_queries(query)[:, :, rows].unflatten(1, (key.shape[1], -1))
    positions = blocks.number[:, rows, None] * blocks.size + blocks.token
    positions = positions.masked_fill(~blocks.is_new[:, rows], -1)
    return _normalized(_pooled(queries, key, positions, blocks, terms, dim=4).flatten(1, 2))


def decode_targets(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> Tensor:
    """Attention of single tokens, max-pooled over a block's keys and a kv head's query heads.

    Only the blocks before a token's own count, because decoding always keeps the token's own.

    Args:
        query: after RoPE, of the tokens to compute [batch, heads, queries, d].
        key: after RoPE [batch, kv heads, tokens, d].
        positions: of the queries, counted from each row's first real token [batch, queries] int64.
        blocks: the blocks of this forward.
        terms: scaling, softcap and sinks of the layer.

    Returns:
        [batch, kv heads, queries, blocks] float32; each row sums to 1, or is 0 in the first block.
    """
    queries = query.unflatten(1, (key.shape[1], -1))[..., None, :]
    tiles = _pooled(queries, key, positions[..., None], blocks, terms, dim=2)[..., 0, :]
    own = (positions // blocks.size)[:, None, :, None]
    return _normalized(tiles.scatter(-1, own.expand(*tiles.shape[:-1], 1), 0.0))


def _pooled(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: SoftmaxTerms, dim: int
) -> Tensor:
    """Max-pool probabilities over each block's keys and dimension `dim`.

    query [batch, kv heads, group, rows, t, d]; positions [batch, rows, t], -1 for no query. Returns
    [batch, kv heads, group, rows, t, blocks] without dimension `dim`.
    """
    keys = blocks.of_keys(key.float()).flatten(2, 3)
    row_probabilities = query[:, :, :, 0, :, 0].numel() * keys.shape[2]
    rows = max(1, MAX_PROBABILITIES // row_probabilities)
    pooled = []
    for part, at in zip(query.split(rows, 3), positions.split(rows, 1), strict=True):
        # Queries of these rows see no later block.
        seen = max(1, int(at.max()) // blocks.size + 1)
        weights = _probabilities(part.float(), keys[:, :, : seen * blocks.size], at, blocks, terms)
        tiles = weights.unflatten(-1, (seen, blocks.size)).amax((dim, -1))
        pooled.append(torch.nn.functional.pad(tiles, (0, blocks.count - seen)))
    return torch.cat(pooled, 3 if dim > 3 else 2)


def _normalized(tiles: Tensor) -> Tensor:
    """Divide rows by their sums; rows of zeros stay."""
    return tiles / tiles.sum(-1, keepdim=True).clamp_min(torch.finfo(tiles.dtype).tiny)


def _probabilities(
    query: Tensor, key: Tensor, positions: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> Tensor:
    """Attention to key [batch, kv heads, n, d]: [batch, kv heads, group, rows, t, n], 0 for no
    query."""
    # One product for all rows: broadcasting would copy the keys for each row.
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
