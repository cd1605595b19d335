"""Blocks chosen by the true attention: an upper bound for block selection.

It computes every probability, so it saves no time; it shows how much accuracy a method loses.
"""

import torch
from torch import Tensor

from needlework.attention.base import FLOAT32_BYTES, Forward, RankedSelector
from needlework.attention.blocks import Blocks
from needlework.attention.layers import LayerShape
from needlework.config.attention.oracle import Oracle

PROBABILITIES_AT_ONCE = 2**24
"""Largest number of probabilities computed together, unless one row of blocks has more."""


class Method(RankedSelector[Oracle]):
    """Pools attention probabilities over each tile of a row's queries and a block's keys.

    A row pools the queries of this forward only, so a decoded token is scored by itself. No state.
    """

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Probabilities pooled over queries, keys and heads [batch, rows, blocks], float32."""
        blocks = forward.blocks
        group = query.shape[1] // key.shape[1]
        queries = blocks.of_queries(query.float()).unflatten(1, (-1, group))
        keys = blocks.of_keys(key.float()).flatten(2, 3)
        sinks = forward.terms.get("sinks")
        head_sinks = (
            [None] * keys.shape[1] if sinks is None else list(sinks.float().view(-1, group))
        )
        row_probabilities = len(query) * group * blocks.size * blocks.count * blocks.size
        batch_rows = max(1, PROBABILITIES_AT_ONCE // row_probabilities)
        scores = []
        for start in range(0, blocks.rows, batch_rows):
            rows = slice(start, min(start + batch_rows, blocks.rows))
            allowed = _allowed(blocks, rows)[:, None]
            pooled = [
                self._pool(queries[:, h, :, rows], keys[:, h], allowed, head_sinks[h], forward)
                for h in range(keys.shape[1])
            ]
            scores.append(self._reduce(torch.stack(pooled), 0))
        return torch.cat(scores, 1)

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        pass  # no state

    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        return 0

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        return 2 * tokens**2 * layer.heads * layer.key_dim

    def selection_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        # Float32 keys and values, and four tensors of probabilities.
        keys = tokens * layer.kv_heads * (layer.key_dim + layer.value_dim)
        own = FLOAT32_BYTES * keys + 4 * FLOAT32_BYTES * PROBABILITIES_AT_ONCE
        return super().selection_bytes(layer, tokens, new_tokens) + own

    def _pool(
        self, query: Tensor, key: Tensor, allowed: Tensor, sinks: Tensor | None, forward: Forward
    ) -> Tensor:
        """Pooled probabilities of one key head [batch, rows, blocks].

        query [batch, group, rows, size, d], key [batch, n, d], sinks [group]; allowed [batch, 1,
        rows, size, n].
        """
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
        # Rows without a query have no allowed key, and a NaN softmax.
        weights = weights.masked_fill(~allowed, 0).unflatten(-1, (-1, forward.blocks.size))
        return self._reduce(weights, (1, 3, 5))

    def _reduce(self, x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        return x.amax(dim) if self.system.pool == "max" else x.sum(dim)


def _allowed(blocks: Blocks, rows: slice) -> Tensor:
    """Tokens that each query of `rows` may see [batch, rows, size, blocks * size]."""
    queries = (blocks.number[:, rows, None] * blocks.size + blocks.token)[..., None]
    keys = torch.arange(blocks.count * blocks.size, device=blocks.device)
    allowed = (keys <= queries) & blocks.is_new[:, rows, :, None]
    if not blocks.mask.is_causal:
        first = blocks.first.view(-1, 1, 1, 1)
        batch = torch.arange(len(first), device=blocks.device).view(-1, 1, 1, 1)
        queries = (first + queries).clamp_max(blocks.mask.total - 1)
        allowed = allowed & blocks.mask.at(batch, queries, first + keys)
    return allowed
