"""SketchWalk (Rice, "Scout Before You Attend", 2026): blocks chosen by a walk across layers.

Each layer scores blocks against blocks, W, by sketched means of their queries and keys. The walk
R <- R W multiplies the layers' scores: a block counts if earlier layers lead to it, be it through
other blocks.
"""

import logging

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.apply import Forward
from needlework.attention.blocks import Blocks
from needlework.config.systems import SketchWalk

_log = logging.getLogger(__name__)
SCORES_AT_ONCE = 2**24
"""Largest number of block scores, over all heads, computed together."""


class Selector:
    """Scores blocks in one forward after another; what it remembers lies in the cache.

    For each sparse layer, float32, with r the dimension of the sketch and h, h_kv the heads told
    apart (1 for `heads: mean`): `keys` [batch, h_kv, blocks, r], sketched means of blocks;
    `queries` [batch, h, block_size, r], sketched queries of the last block; `steps` [batch, blocks,
    blocks], the W of the layer.
    """

    def __init__(self, system: SketchWalk):
        self.system = system
        self._sketches: dict[tuple[int, torch.device], Tensor] = {}

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """The walk R up to this layer [batch, rows, blocks], float32, each row of sum 1."""
        blocks, held = forward.blocks, forward.state.tensors.setdefault(layer, {})
        sketch = self._sketch(query.shape[-1], query.device)
        held["keys"] = _write(held.get("keys"), self._key_means(key, sketch, blocks), blocks)
        queries = self._heads(query) @ sketch
        means = self._query_means(queries, blocks, held)
        # A token that decodes asks for itself; its block's mean asks once the block is full.
        walk = self._step(queries if forward.is_decode else means, blocks, held["keys"])
        if self.system.walk == "product":
            held["steps"] = _write(held.get("steps"), walk, blocks)
            if forward.walk is not None:
                walk = forward.walk @ held["steps"]
            if forward.is_decode and any(blocks.is_full):
                step = self._step(means, blocks, held["keys"])
                for b in (b for b, full in enumerate(blocks.is_full) if full):
                    held["steps"][b, blocks.begin[b]] = step[b, 0]
        # softmax^s products underflow in a few layers; the order within a row is all that counts.
        walk = walk / walk.sum(-1, keepdim=True).clamp_min(torch.finfo(walk.dtype).tiny)
        forward.walk = walk
        return walk

    def _sketch(self, d: int, device: torch.device) -> Tensor:
        if (d, device) not in self._sketches:
            sketch = hadamard_sketch(d, self.system.sketch_dim, self.system.seed).to(device)
            _log.info("sketchwalk: heads of dimension %d sketched in %d", *sketch.shape)
            self._sketches[d, device] = sketch
        return self._sketches[d, device]

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, heads, ..., d] -> the heads told apart [batch, h, ..., d], float32."""
        return x.float() if self.system.heads == "sum" else x.float().mean(1, keepdim=True)

    def _key_means(self, key: Tensor, sketch: Tensor, blocks: Blocks) -> Tensor:
        """Sketched mean keys of the rows' blocks, over the real tokens so far."""
        sums = self._heads(blocks.keys_of_rows(key).float().sum(3))
        return sums / blocks.seen @ sketch

    def _query_means(self, queries: Tensor, blocks: Blocks, held: dict[str, Tensor]) -> Tensor:
        """Mean queries of the rows, over the real tokens so far [batch, h, rows, r]."""
        queries = blocks.of_queries(queries)
        if "queries" in held:
            queries[:, :, 0] += held["queries"] * blocks.is_earlier
        held["queries"] = torch.stack([queries[b, :, row] for b, row in enumerate(blocks.last)])
        return queries.sum(3) / blocks.seen

    def _step(self, queries: Tensor, blocks: Blocks, keys: Tensor) -> Tensor:
        """W = (sum over heads of softmax_j <S q_i, S k_j> / sqrt(r))^s over the causal blocks."""
        batch, h, _, r = queries.shape
        kv = keys.shape[1]
        parts = []
        together = max(1, SCORES_AT_ONCE // (batch * h * blocks.count))
        for rows, future in zip(
            queries.split(together, 2), blocks.future.split(together, 1), strict=True
        ):
            scores = rows.reshape(batch, kv, -1, r) @ keys.transpose(-1, -2) * r**-0.5
            scores = scores.view(batch, h, -1, blocks.count)
            weights = scores.masked_fill(future[:, None], -torch.inf).softmax(-1)
            parts.append(weights.sum(1) ** self.system.sparsity_exponent)
        return torch.cat(parts, 1)


def hadamard_sketch(d: int, sketch_dim: int, seed: int) -> Tensor:
    """Subsampled randomised Hadamard transform as a matrix [d, r], float32: x @ S sketches x.

    Random signs, Walsh-Hadamard transform, r = min(sketch_dim, d padded to a power of two) of its
    coordinates, scaled so that E<x S, y S> = <x, y>.
    """
    padded = 1 << (d - 1).bit_length()
    r = min(sketch_dim, padded)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (d, 1), generator=generator) * 2.0 - 1
    coordinates = torch.randperm(padded, generator=generator)[:r]
    hadamard = torch.ones(1, 1)
    while len(hadamard) < padded:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return signs * hadamard[:d, coordinates] * r**-0.5


def _write(held: Tensor | None, rows: Tensor, blocks: Blocks) -> Tensor:
    """`held` [batch, ..., blocks, x] with the forward's rows [batch, ..., rows, x] put in."""
    if held is None:
        return rows
    more = blocks.count - held.shape[-2], rows.shape[-1] - held.shape[-1]
    if any(more):
        held = functional.pad(held, (0, more[1], 0, more[0]))
    for b, begin in enumerate(blocks.begin):
        held[b, ..., begin : begin + blocks.rows, :] = rows[b]
    return held
