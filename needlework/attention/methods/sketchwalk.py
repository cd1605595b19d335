"""SketchWalk (Rice, "Scout Before You Attend", 2026): blocks chosen by a walk across layers.

Each layer scores blocks against blocks, W, with sketched means of their queries and keys. The walk
R <- R W multiplies the layers' scores, so a block scores high if earlier layers lead to it,
directly or through other blocks.

With `keys: box` (ours) a block of keys is represented by its bounding box, the maximum and minimum
of each coordinate, which bounds the score of any key in it, as in Quest (Tang et al., 2024). A mean
can hide a single key; a bound cannot. Quest uses boxes in decode, per head; here they serve prefill
too, and the softmaxes of the heads are summed.
"""

import logging
import math
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from needlework.attention.base import (
    FLOAT32_BYTES,
    INT64_BYTES,
    Forward,
    RankedSelector,
    count_choices,
)
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks, choose
from needlework.attention.hadamard import hadamard_sketch, sketched_dim
from needlework.attention.layers import LayerShape
from needlework.config.attention.sketchwalk import SketchWalk

_log = logging.getLogger(__name__)
SCORES_AT_ONCE = 2**24
"""Largest number of block scores, over all heads, computed together."""


class Method(RankedSelector[SketchWalk]):
    """Scores blocks in each layer and carries the walk from layer to layer.

    State in the cache per sparse layer, float32, with r the sketch dimension and h, h_kv the heads
    kept apart (1 with `heads: mean`):

    - `keys` [batch, h_kv, blocks, r], sketched means of blocks, or boxes [batch, h_kv, blocks, 2 r]
    - `queries` [batch, h, block_size, r], sketched queries of the last block
    - `steps` [batch, blocks, blocks], W of the layer; with `walk_memory: sparse` its kept entries,
      k per row: `to` [batch, blocks, k], block numbers, and `weights` [batch, blocks, k]
    - with decode_queries above 1, `recent` [batch, h, slots, r], sketched queries of the last
      tokens, and `recent_at` [batch, slots], their positions
    """

    def __init__(self, system: SketchWalk, gate_dim: int | None = None):
        super().__init__(system)
        self._sketches: dict[tuple[int, torch.device], Tensor] = {}

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor | None:
        """The walk R up to this layer [batch, rows, blocks], float32, each row of sum 1; with
        choices group or head the scores of each [batch, choices, rows, blocks].

        +inf or -inf for blocks that are kept or skipped regardless of rank. Where R is W and only
        ranks count, the logarithm of W, in the same order: W underflows, and blocks of score 0
        would tie.
        """
        blocks, state = forward.blocks, forward.state.tensors.setdefault(layer, {})
        queries, rows = self._store_tokens(query, key, forward, state)
        scale = self._scale(query)
        if forward.is_decode:
            # A token scores with its own query; the mean of its block is used once it is full.
            row_queries = self._recent_mean(blocks, state) if "recent" in state else queries
        else:
            row_queries = rows.sum(3) / blocks.seen
        logarithms = self._logarithms(row_queries, blocks, state["keys"], scale)
        step = walk = self._sharpened(logarithms)
        is_first = "walk" not in forward.shared
        is_step = self.system.walk == "off" or (self.system.walk == "product" and is_first)
        if self.system.walk != "off":
            self._store_step(step, blocks, state)
            walk = self._walk(step, forward, state)
            if forward.is_decode and any(blocks.is_full):
                full = blocks.constant(*blocks.is_full, shape=(-1, 1, 1)).bool()
                means = rows.sum(3) / blocks.seen
                complete = torch.where(full, self._step(means, blocks, state["keys"], scale), step)
                self._store_step(complete, blocks, state)
        # Only the order within a row matters; without scaling, products of softmax^s underflow
        # within a few layers.
        walk = forward.shared["walk"] = _normalised(walk)
        ranks = logarithms if is_step and self.system.select == "topk" else walk
        if ranks.ndim == 3:
            return self._marked(ranks, forward)
        return torch.stack([self._marked(one, forward) for one in ranks.unbind(1)], 1)

    def choices(self, layer: LayerShape) -> int:
        return count_choices(self.system.choices, layer.heads, layer.kv_heads)

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        """Store what later sparse forwards need: their walk leads through these blocks."""
        blocks, state = forward.blocks, forward.state.tensors.setdefault(layer, {})
        _, rows = self._store_tokens(query, key, forward, state)
        # In decode, the row of a block is computed once it is full.
        if self.system.walk != "off" and (not forward.is_decode or any(blocks.is_full)):
            means = rows.sum(3) / blocks.seen
            step = self._step(means, blocks, state["keys"], self._scale(query))
            self._store_step(step, blocks, state)

    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        system, blocks = self.system, self.count_blocks(tokens)
        heads, kv = (1, 1) if system.heads == "mean" else (layer.heads, layer.kv_heads)
        r = sketched_dim(layer.key_dim, system.sketch_dim)
        keys = kv * blocks * r * (2 if system.keys == "box" else 1)
        total = FLOAT32_BYTES * (keys + heads * system.block_size * r)
        if system.walk != "off" and system.walk_memory == "full":
            total += FLOAT32_BYTES * blocks**2
        elif system.walk != "off":
            total += (FLOAT32_BYTES + INT64_BYTES) * blocks * self.most_kept(blocks)
        if system.decode_queries > 1:
            slots = system.decode_queries + system.block_size
            total += FLOAT32_BYTES * heads * slots * r + INT64_BYTES * slots
        return total

    def kept_in_prefill(self, blocks: int) -> NDArray[np.number]:
        system, kept = self.system, super().kept_in_prefill(blocks)
        if system.select == "quantile":
            rows = np.arange(1, blocks + 1)
            kept = (1 - system.quantile) * rows + blocks * (system.local_share + system.sink_share)
        is_last = np.arange(blocks) >= blocks - system.dense_last_rows
        return np.where(is_last, blocks, kept)

    def most_kept(self, blocks: int) -> int:
        if self.system.select == "quantile":
            return min(blocks, math.ceil((1 - self.system.quantile) * blocks) + 1)
        return super().most_kept(blocks)

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        # Scores of blocks against blocks, and the b^3 products of the walk.
        system, blocks = self.system, self.count_blocks(tokens)
        heads = 1 if system.heads == "mean" else layer.heads
        steps = {"off": 0, "product": 1, "damped": system.walk_steps}[system.walk]
        r = sketched_dim(layer.key_dim, system.sketch_dim) * (2 if system.keys == "box" else 1)
        width = blocks if system.walk_memory == "full" else self.most_kept(blocks)
        return 2 * blocks**2 * heads * r + 2 * steps * blocks * width * width

    def selection_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        # The sketched queries of the prompt.
        heads = 1 if self.system.heads == "mean" else layer.heads
        r = sketched_dim(layer.key_dim, self.system.sketch_dim)
        sketched = FLOAT32_BYTES * new_tokens * heads * r
        return super().selection_bytes(layer, tokens, new_tokens) + sketched

    def _store_tokens(
        self, query: Tensor, key: Tensor, forward: Forward, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Add this forward's queries and keys to the state.

        Returns:
            The sketched queries [batch, h, new tokens, r], and by rows, see `_query_rows`.
        """
        blocks = forward.blocks
        state["keys"] = write_rows(state.get("keys"), self._keys(key, blocks), blocks)
        queries = self._sketched(self._heads(query))
        if self.system.decode_queries > 1:
            self._store_recent(queries, blocks, state)
        return queries, self._query_rows(queries, forward, state)

    def _scale(self, query: Tensor) -> float:
        """Factor on block scores before the softmax."""
        scale = self.system.score_scale
        return query.shape[-1] / 100 if scale is None else scale

    def _sketched(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., r]; unchanged without a sketch."""
        d, device = x.shape[-1], x.device
        if self.system.sketch_dim is None:
            return x
        if (d, device) not in self._sketches:
            sketch = hadamard_sketch(d, self.system.sketch_dim, self.system.seed).to(device)
            _log.info("sketchwalk: head dimension %d sketched to %d", *sketch.shape)
            self._sketches[d, device] = sketch
        return x @ self._sketches[d, device]

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, heads, ..., d] -> the heads kept apart [batch, h, ..., d], float32."""
        return x.float() if self.system.heads == "sum" else x.float().mean(1, keepdim=True)

    def _keys(self, key: Tensor, blocks: Blocks) -> Tensor:
        """Mean or box of the real keys so far in each row's block [batch, h_kv, rows, r or 2 r]."""
        if self.system.keys == "box":
            return _box(self._sketched(self._heads(blocks.keys_of_rows(key))), blocks)
        return self._sketched(self._heads(blocks.key_sums_of_rows(key)) / blocks.seen)

    def _query_rows(self, queries: Tensor, forward: Forward, state: dict[str, Tensor]) -> Tensor:
        """Queries of each row so far, 0 at slots without a token [batch, h, rows, size, r].

        In decode, slots after the last token still hold the previous block, so a row is valid only
        once it is full; it is not used before.
        """
        blocks = forward.blocks
        if "queries" in state and forward.is_decode and blocks.mask.is_causal:
            slots = [max(0, blocks.mask.start - n) % blocks.size for n in blocks.mask.first]
            if len(set(slots)) == 1:
                state["queries"][:, :, slots[0]] = queries[:, :, 0]
            else:
                for b, slot in enumerate(slots):
                    state["queries"][b, :, slot] = queries[b, :, 0]
            return state["queries"][:, :, None]
        queries = blocks.of_queries(queries)
        if "queries" in state:
            # Without a sketch this may be a view of the model's own tensor.
            queries = queries.clone()
            queries[:, :, 0] += state["queries"] * blocks.is_earlier
        state["queries"] = torch.stack([queries[b, :, row] for b, row in enumerate(blocks.last)])
        return queries

    def _store_recent(self, queries: Tensor, blocks: Blocks, state: dict[str, Tensor]) -> None:
        """Keep the last queries, position p in slot p mod slots.

        Keeps one block more than decode_queries, so that cropping the last block loses none.
        """
        batch, h, _, r = queries.shape
        slots, total = self.system.decode_queries + blocks.size, blocks.mask.total
        if "recent" not in state:
            state["recent"] = queries.new_zeros(batch, h, slots, r)
            state["recent_at"] = torch.full((batch, slots), -1, device=queries.device)
        new = torch.arange(max(blocks.mask.start, total - slots), total, device=queries.device)
        at = new.expand(batch, -1)
        if blocks.mask.real is not None:
            at = torch.where(blocks.mask.real[:, new], at, -1)
        state["recent"].index_copy_(2, new % slots, queries[:, :, -len(new) :])
        state["recent_at"].index_copy_(1, new % slots, at)

    def _recent_mean(self, blocks: Blocks, state: dict[str, Tensor]) -> Tensor:
        """Mean of the last decode_queries queries of each batch row [batch, h, 1, r]."""
        at, total = state["recent_at"], blocks.mask.total
        is_used = (at >= max(0, total - self.system.decode_queries)) & (at < total)
        sums = (state["recent"] * is_used[:, None, :, None]).sum(2, keepdim=True)
        return sums / is_used.sum(-1).clamp_min(1).view(-1, 1, 1, 1)

    def _step(self, queries: Tensor, blocks: Blocks, keys: Tensor, scale: float) -> Tensor:
        """W of these queries, see `_logarithms`."""
        return self._sharpened(self._logarithms(queries, blocks, keys, scale))

    def _sharpened(self, logarithms: Tensor) -> Tensor:
        """W = (sum over heads of softmax)^s; rows of sum 1 for the damped walk."""
        step = (logarithms * self.system.sparsity_exponent).exp()
        return _normalised(step) if self.system.walk == "damped" else step

    def _logarithms(self, queries: Tensor, blocks: Blocks, keys: Tensor, scale: float) -> Tensor:
        """log(sum over heads of softmax_j c <S q_i, S k_j> / sqrt(r)) over the causal blocks
        [batch, rows, blocks], or [batch, choices, rows, blocks] over the heads of each choice.

        c is `scale`. With `keys: box` the product is an upper bound for the keys in the box.
        """
        batch, h, _, r = queries.shape
        kv = keys.shape[1]
        queries = queries * (scale * r**-0.5)
        if self.system.keys == "box":
            queries = torch.cat([queries.clamp_min(0), queries.clamp_max(0)], -1)
        parts = []
        batch_rows = max(1, SCORES_AT_ONCE // (batch * h * blocks.count))
        for rows, future in zip(
            queries.split(batch_rows, 2), blocks.future.split(batch_rows, 1), strict=True
        ):
            scores = rows.reshape(batch, kv, -1, rows.shape[-1]) @ keys.transpose(-1, -2)
            scores = scores.view(batch, h, -1, blocks.count)
            scores = scores.masked_fill(future[:, None], -torch.inf)
            choices = count_choices(self.system.choices, h, kv)
            logs = scores.log_softmax(-1).unflatten(1, (choices, -1))
            parts.append(logs.logsumexp(2) if logs.shape[2] > 1 else logs[:, :, 0])
        logarithms = torch.cat(parts, 2)
        return logarithms[:, 0] if self.system.choices == "layer" else logarithms

    def _store_step(self, step: Tensor, blocks: Blocks, state: dict[str, Tensor]) -> None:
        """Add the rows of W to those of earlier forwards."""
        if self.system.walk_memory == "full":
            state["steps"] = write_rows(state.get("steps"), step, blocks)
            return
        for name, rows in zip(("to", "weights"), self._entries(step, blocks), strict=True):
            if name in state and state[name].shape[-1] > rows.shape[-1]:
                rows = functional.pad(rows, (0, state[name].shape[-1] - rows.shape[-1]))
            state[name] = write_rows(state.get(name), rows, blocks)

    def _walk(self, step: Tensor, forward: Forward, state: dict[str, Tensor]) -> Tensor:
        """R of this layer, from R of the previous sparse layer."""
        previous = forward.shared.get("walk")
        if self.system.walk == "product":
            return step if previous is None else self._advance(previous, forward.blocks, state)
        walk, damping = step if previous is None else previous, self.system.walk_damping
        for _ in range(self.system.walk_steps):
            walk = (1 - damping) * step + damping * self._advance(walk, forward.blocks, state)
        return walk

    def _advance(self, walk: Tensor, blocks: Blocks, state: dict[str, Tensor]) -> Tensor:
        """R W; with sparse memory over the kept entries of both."""
        if self.system.walk_memory == "full":
            return walk @ state["steps"]
        to, weights = self._entries(walk, blocks)
        product = torch.zeros_like(walk)
        batch_rows = max(1, SCORES_AT_ONCE // (to[:, 0].numel() * state["to"].shape[-1]))
        batch = torch.arange(len(walk), device=walk.device)[:, None, None]
        for start in range(0, blocks.rows, batch_rows):
            rows = slice(start, start + batch_rows)
            through = weights[:, rows, :, None] * state["weights"][batch, to[:, rows]]
            ends = state["to"][batch, to[:, rows]]
            product[:, rows].scatter_add_(2, ends.flatten(2), through.flatten(2))
        return product

    def _entries(self, x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Block numbers and values of the entries that rows of W or R keep [batch, rows, k].

        Blocks kept by shares and dense_last_rows are excluded: they depend on the prompt's length.
        """
        marked = x
        if self.system.select == "quantile":
            marked = self._above_quantile(x, ~blocks.future)
        chosen = choose(marked, blocks)
        to = chosen.clamp_min(0)
        return to, x.gather(2, to) * (chosen >= 0)

    def _above_quantile(self, walk: Tensor, ranked: Tensor) -> Tensor:
        kept = walk > _quantile(walk, ranked, self.system.quantile)
        return torch.where(kept, torch.inf, -torch.inf)

    def _marked(self, walk: Tensor, forward: Forward) -> Tensor:
        """Scores with +inf for blocks that are always kept, -inf for blocks that never are."""
        system, blocks = self.system, forward.blocks
        shares = system.sink_share, system.local_share
        if forward.is_decode and system.select == "topk" and not any(shares):
            blocks.marks_blocks = False
        if not blocks.marks_blocks:
            return walk
        tokens = forward.prompt_lengths
        number = blocks.numbers
        sinks = self._share(system.sink_share, tokens, blocks)
        local = self._share(system.local_share, tokens, blocks)
        is_local = number > blocks.number[..., None] - local
        forced = (number < sinks) | is_local
        if system.select == "quantile":
            share = system.unranked_sink_share
            unranked = sinks if share is None else self._share(share, tokens, blocks)
            is_ranked = ~(blocks.future | is_local | (number < unranked))
            walk = self._above_quantile(walk, is_ranked)
        if not forward.is_decode:
            ends = blocks.constant(*[-(-n // blocks.size) for n in tokens], shape=(-1, 1))
            is_last = blocks.number >= ends - system.dense_last_rows
            forced = forced | is_last[..., None]
        return walk.masked_fill(forced, torch.inf)

    def _share(self, share: float, tokens: list[int], blocks: Blocks) -> Tensor:
        """Blocks that hold a share of each batch row's tokens, rounded up [batch, 1, 1]."""
        # The decimal as written, without binary rounding.
        size = self.system.block_size
        counts = [-int(-Fraction(str(share)) * n / size // 1) for n in tokens]
        return blocks.constant(*counts, shape=(-1, 1, 1))


def _normalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _box(x: Tensor, blocks: Blocks) -> Tensor:
    """Maximum, then minimum of each coordinate over the real tokens of each row's block
    [batch, h, rows, size, r] -> [batch, h, rows, 2 r]; 0 in blocks without tokens."""
    if blocks.rows == 1:
        missing = ~blocks.is_seen
        largest = x.masked_fill(missing, -torch.inf).amax(3)
        smallest = x.masked_fill(missing, torch.inf).amin(3)
        return torch.cat([largest, smallest], -1).nan_to_num_(posinf=0, neginf=0)
    box = torch.cat([x.amax(3), x.amin(3)], -1)
    # Mask only incomplete blocks: copying all of x would cost more than choosing blocks.
    partial = (blocks.seen < blocks.size)[:, 0, :, 0]
    tokens = x.transpose(1, 2)[partial]
    missing = ~blocks.is_seen[:, 0][partial][:, None]
    largest = tokens.masked_fill(missing, -torch.inf).amax(2)
    smallest = tokens.masked_fill(missing, torch.inf).amin(2)
    box.transpose(1, 2)[partial] = torch.cat([largest, smallest], -1)
    return box.masked_fill_(box.isinf(), 0)


def _quantile(x: Tensor, ranked: Tensor, quantile: float) -> Tensor:
    """Quantile of each row's entries where `ranked` is true, interpolated [batch, rows, 1];
    +inf or NaN in rows without such entries."""
    ordered = x.masked_fill(~ranked, torch.inf).sort(-1).values
    last = (ranked.sum(-1, keepdim=True) - 1).clamp_min(0)
    position = last.double() * quantile
    low = position.floor().long()
    below, above = (ordered.gather(2, at) for at in (low, torch.minimum(low + 1, last)))
    return torch.lerp(below, above, (position - low).to(x.dtype))
