"""Blocks by the true attention: what any choice of blocks could reach at best.

It computes every probability, so it saves nothing; it tells how much a method leaves on the table.
"""

import torch
from torch import Tensor

from needlework.attention.apply import Forward
from needlework.attention.blocks import Blocks
from needlework.config.attention import Oracle

PROBABILITIES_AT_ONCE = 2**24
"""Largest number of probabilities computed together, unless one row of blocks has more."""


class Selector:
    """Pools attention probabilities over each tile of a row's queries and a block's keys.

    A row pools the queries that the forward brings: a token that decodes stands for itself. No
    state.
    """

    def __init__(self, system: Oracle):
        self.system = system

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Probabilities pooled over queries, keys and heads [batch, rows, blocks], float32."""
        blocks = forward.blocks
        group = query.shape[1] // key.shape[1]
        queries = blocks.of_queries(query.float()).unflatten(1, (-1, group))
        keys = blocks.of_keys(key.float()).flatten(2, 3)
        sinks = forward.terms.get("sinks")
        sinks = [None] * len(keys[0]) if sinks is None else sinks.float().view(-1, group)
        at_once = len(query) * group * blocks.size * blocks.count * blocks.size
        together = max(1, PROBABILITIES_AT_ONCE // at_once)
        found = []
        for start in range(0, blocks.rows, together):
            rows = slice(start, min(start + together, blocks.rows))
            allowed = _allowed(blocks, rows)[:, None]
            pooled = [
                self._pool(queries[:, h, :, rows], keys[:, h], allowed, sinks[h], forward)
                for h in range(keys.shape[1])
            ]
            found.append(self._over(torch.stack(pooled), 0))
        return torch.cat(found, 1)

    def _pool(
        self, query: Tensor, key: Tensor, allowed: Tensor, sinks: Tensor | None, forward: Forward
    ) -> Tensor:
        """Of one key head: query [batch, group, rows, size, d], key [batch, n, d], sinks [group];
        allowed [batch, 1, rows, size, n]. Returns [batch, rows, blocks]."""
        scaling, softcap = forward.terms.get("scaling"), forward.terms.get("softcap")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits = query @ key.transpose(-1, -2)[:, None, None] * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = logits.masked_fill(~allowed, -torch.inf)
        if sinks is not None:
            sink = sinks.view(1, -1, 1, 1, 1).expand(*logits.shape[:-1], 1)
            weights = torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
        else:
            weights = logits.softmax(-1)
        # A slot without a query allows nothing.
        weights = weights.masked_fill(~allowed, 0).unflatten(-1, (-1, forward.blocks.size))
        return self._over(weights, (1, 3, 5))

    def _over(self, x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        return x.amax(dim) if self.system.pool == "max" else x.sum(dim)


def _allowed(blocks: Blocks, rows: slice) -> Tensor:
    """Which tokens each query of some rows may see [batch, rows, size, blocks * size]."""
    queries = (blocks.number[:, rows, None] * blocks.size + blocks.token)[..., None]
    keys = torch.arange(blocks.count * blocks.size, device=blocks.device)
    allowed = (keys <= queries) & blocks.is_new[:, rows, :, None]
    if not blocks.mask.is_causal:
        first = blocks.first.view(-1, 1, 1, 1)
        batch = torch.arange(len(first), device=blocks.device).view(-1, 1, 1, 1)
        queries = (first + queries).clamp_max(blocks.mask.total - 1)
        allowed = allowed & blocks.mask.at(batch, queries, first + keys)
    return allowed
