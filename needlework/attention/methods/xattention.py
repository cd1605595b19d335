"""XAttention (Xu et al., 2025): blocks scored by sums along strided antidiagonals of q k^T.

Queries and keys fall into groups of `stride` tokens. Query s of a group meets key stride - 1 - s of
another: an antidiagonal of the tile, which touches every token of both groups once. The softmax
runs over groups, a block's score is what falls into it. As published, but for two things: the
scores of all heads are averaged, so that all heads read the same blocks, and decode is sparse too.
"""

import torch
from torch import Tensor

from needlework.attention.apply import Forward
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks
from needlework.config.attention import XAttention

SCORES_AT_ONCE = 2**24
"""Largest number of scores of groups, over all heads, computed together."""


class Selector:
    """Scores blocks of groups. A row asks with the queries that the forward brings.

    A token that decodes stands in every place of its group, so it meets all keys, summed by group:
    `keys` [batch, kv heads, blocks, block_size / stride * d], float32, in the cache.
    """

    def __init__(self, system: XAttention):
        self.system = system
        self._groups = system.block_size // system.stride

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Shares of the softmax, or where there is a threshold +-inf [batch, rows, blocks]."""
        blocks = forward.blocks
        if not self.system.skip_decode:
            held = forward.state.tensors.setdefault(layer, {})
            sums = self._in_groups(blocks.keys_of_rows(key).float()).sum(-2).flatten(3)
            held["keys"] = write_rows(held.get("keys"), sums, blocks)
        scaling = forward.terms.get("scaling")
        scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) / self.system.stride
        kv = key.shape[1]
        if forward.is_decode:
            asks = query[:, :, None].float()
            keys = held["keys"].unflatten(-1, (self._groups, -1)).flatten(2, 3)
            number = (blocks.mask.start - blocks.first[:, None, None]) // self.system.stride
            number = number.clamp_min(0)
            brought = torch.ones_like(number, dtype=torch.bool)
        else:
            asks = self._in_groups(blocks.of_queries(query)).flip(-2).flatten(4)
            keys = self._in_groups(self._real(key, blocks)).flatten(4).flatten(2, 3)
            number = blocks.number[..., None] * self._groups
            number = number + torch.arange(self._groups, device=query.device)
            brought = blocks.is_new.unflatten(2, (self._groups, -1)).any(-1)
        asks = asks.unflatten(1, (kv, -1))
        together = max(1, SCORES_AT_ONCE // (asks[:, :, :, 0, :, 0].numel() * keys.shape[2]))
        parts = zip(
            asks.split(together, 3),
            number.split(together, 1),
            brought.split(together, 1),
            strict=True,
        )
        scores = torch.cat([self._pooled(*part, keys, scale) for part in parts], 1)
        return scores if self.system.threshold is None else self._mark(scores, blocks)

    def _in_groups(self, x: Tensor) -> Tensor:
        """[..., rows, size, d] -> [..., rows, groups, stride, d]."""
        return x.unflatten(-2, (self._groups, self.system.stride))

    def _real(self, key: Tensor, blocks: Blocks) -> Tensor:
        if blocks.mask.real is not None and not blocks.mask.is_causal:
            key = key * blocks.mask.real[:, None, :, None]
        return blocks.of_keys(key)

    def _pooled(
        self, asks: Tensor, number: Tensor, brought: Tensor, keys: Tensor, scale: float
    ) -> Tensor:
        """Shares of the softmax by block, averaged over heads [batch, rows, blocks].

        asks [batch, kv, heads of each, rows, groups, x], with the number of each group, and whether
        it has a query [batch, rows, groups]; keys [batch, kv, all groups, x].
        """
        logits = (asks.flatten(2, 4) @ keys.transpose(-1, -2)).float() * scale
        logits = logits.unflatten(2, asks.shape[2:5])
        future = torch.arange(keys.shape[2], device=keys.device) > number[..., None]
        weights = logits.masked_fill(future[:, None, None], -torch.inf).softmax(-1)
        weights = weights * brought[:, None, None, ..., None]
        return weights.unflatten(-1, (-1, self._groups)).sum((4, 6)).mean((1, 2))

    def _mark(self, scores: Tensor, blocks: Blocks) -> Tensor:
        """+inf for the own block, the first, and the best others until the threshold is held."""
        sure = blocks.own.clone()
        sure[..., 0] = True
        needed = scores.sum(-1, keepdim=True) * self.system.threshold
        held = (scores * sure).sum(-1, keepdim=True)
        best, order = scores.masked_fill(sure, 0).sort(dim=-1, descending=True, stable=True)
        before = held + best.cumsum(-1) - best
        kept = torch.zeros_like(sure).scatter(2, order, (before < needed) & (best > 0))
        return torch.where(kept | sure, torch.inf, -torch.inf)
