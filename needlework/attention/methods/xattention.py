"""XAttention (Xu et al., 2025): blocks scored by sums along strided antidiagonals of q k^T.

Queries and keys are divided into groups of `stride` tokens. Query s of a group meets key
stride - 1 - s of another: an antidiagonal of the tile, which uses every token of both groups once.
The softmax runs over groups; a block's score is the sum of its groups. Unlike in the paper, decode
is sparse too.
"""

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.base import FLOAT32_BYTES, Forward, RankedSelector, count_choices
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks, joined
from needlework.attention.layers import LayerShape
from needlework.config.attention.xattention import XAttention

SCORES_AT_ONCE = 2**24
"""Largest number of group scores, over all heads, computed together."""
PARTS = 16
"""Parts in which the rows of a prefill are scored, each against the keys up to its last row."""


class Method(RankedSelector[XAttention]):
    """Scores blocks by groups, with the queries of this forward.

    A decoded token takes every place of its group, so it meets the sums of keys over groups, kept
    in the cache: `keys` [batch, kv heads, blocks, block_size / stride * d], float32.
    """

    def __init__(self, system: XAttention, gate_dim: int | None = None):
        super().__init__(system)
        self._groups = system.block_size // system.stride

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Shares of the softmax, or +-inf with a threshold [batch, choices, rows, blocks]."""
        blocks = forward.blocks
        self.observe(layer, query, key, forward)
        scaling = forward.terms.get("scaling")
        scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) / self.system.stride
        kv = key.shape[1]
        if forward.is_decode:
            queries = query[:, :, None].float()
            keys = (
                forward.state.tensors[layer]["keys"].unflatten(-1, (self._groups, -1)).flatten(2, 3)
            )
        else:
            queries = self._in_groups(blocks.of_queries(query)).flip(-2).flatten(4)
            keys = self._in_groups(self._real(key, blocks)).flatten(4).flatten(2, 3)
        number, has_query = self._query_groups(forward)
        queries = queries.unflatten(1, (kv, -1))
        row_scores = queries[:, :, :, 0, :, 0].numel() * keys.shape[2]
        batch_rows = max(1, min(SCORES_AT_ONCE // row_scores, -(-blocks.rows // PARTS)))
        first, parts = max(blocks.begin), []
        for start in range(0, blocks.rows, batch_rows):
            end = min(start + batch_rows, blocks.rows)
            past = keys[:, :, : (first + end) * self._groups]
            rows = slice(start, end)
            part = self._pooled(
                queries[:, :, :, rows], number[:, rows], has_query[:, rows], past, scale
            )
            if part.shape[-1] < blocks.count:
                part = functional.pad(part, (0, blocks.count - part.shape[-1]))
            parts.append(part)
        scores = joined(parts, 2)
        threshold = self.system.threshold
        return scores if threshold is None else _mark(scores, blocks, threshold)

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        """Add the keys of this forward to the sums that decode meets."""
        if self.system.is_dense("decode"):
            return
        blocks, state = forward.blocks, forward.state.tensors.setdefault(layer, {})
        sums = self._in_groups(blocks.keys_of_rows(key).float()).sum(-2).flatten(3)
        state["keys"] = write_rows(state.get("keys"), sums, blocks)

    def sparse_prefill_density(self, tokens: int) -> float:
        return 1.0 if self.system.threshold is not None else super().sparse_prefill_density(tokens)

    def sparse_decode_density(self, tokens: int) -> float:
        return 1.0 if self.system.threshold is not None else super().sparse_decode_density(tokens)

    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        if self.system.is_dense("decode"):
            return 0
        rows = layer.kv_heads * self.count_blocks(tokens) * self._groups
        return FLOAT32_BYTES * rows * layer.key_dim

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        # Queries against keys, up to the end of each part of the rows.
        pairs = tokens**2 / 2 * (1 + 1 / PARTS)
        return 2 * pairs / self.system.stride * layer.heads * layer.key_dim

    def choices(self, layer: LayerShape) -> int:
        return count_choices(self.system.choices, layer.heads, layer.kv_heads)

    def _query_groups(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """Number of each group of queries among all groups, and whether it has a query
        [batch, rows, groups], the same in every layer."""
        blocks, shared = forward.blocks, forward.shared
        if "number" not in shared:
            if forward.is_decode:
                position = (blocks.mask.start - blocks.first).clamp_min(0)
                shared["number"] = (position // self.system.stride)[:, None, None]
                shared["has_query"] = torch.ones_like(shared["number"], dtype=torch.bool)
            else:
                groups = torch.arange(self._groups, device=blocks.device)
                shared["number"] = blocks.number[..., None] * self._groups + groups
                by_group = blocks.is_new.unflatten(2, (self._groups, -1))
                shared["has_query"] = by_group.any(-1)
        return shared["number"], shared["has_query"]

    def _in_groups(self, x: Tensor) -> Tensor:
        """[..., rows, size, d] -> [..., rows, groups, stride, d]."""
        return x.unflatten(-2, (self._groups, self.system.stride))

    def _real(self, key: Tensor, blocks: Blocks) -> Tensor:
        if blocks.mask.real is not None and not blocks.mask.is_causal:
            key = key * blocks.mask.real[:, None, :, None]
        return blocks.of_keys(key)

    def _pooled(
        self, queries: Tensor, number: Tensor, has_query: Tensor, keys: Tensor, scale: float
    ) -> Tensor:
        """Shares of the softmax by block [batch, choices, rows, blocks], averaged over the heads
        of each choice.

        queries [batch, kv, heads of each, rows, groups, x]; the number of each group, and whether
        it has a query [batch, rows, groups]; keys [batch, kv, all groups, x].
        """
        logits = (queries.flatten(2, 4) @ keys.transpose(-1, -2)).float() * scale
        logits = logits.unflatten(2, queries.shape[2:5])
        future = torch.arange(keys.shape[2], device=keys.device) > number[..., None]
        weights = logits.masked_fill(future[:, None, None], -torch.inf).softmax(-1)
        weights = weights * has_query[:, None, None, ..., None]
        shares = weights.unflatten(-1, (-1, self._groups)).sum((4, 6)).flatten(1, 2)
        choices = count_choices(self.system.choices, shares.shape[1], keys.shape[1])
        return shares.unflatten(1, (choices, -1)).mean(2)


def _mark(scores: Tensor, blocks: Blocks, threshold: float) -> Tensor:
    """+inf for the row's own block, the first, and the best others up to the threshold."""
    forced = blocks.own[:, None].expand_as(scores).clone()
    forced[..., 0] = True
    target = scores.sum(-1, keepdim=True) * threshold
    forced_sum = (scores * forced).sum(-1, keepdim=True)
    best, order = scores.masked_fill(forced, 0).sort(dim=-1, descending=True, stable=True)
    before = forced_sum + best.cumsum(-1) - best
    kept = torch.zeros_like(forced).scatter(-1, order, (before < target) & (best > 0))
    return torch.where(kept | forced, torch.inf, -torch.inf)
