"""SketchWalk (Rice, "Scout Before You Attend", 2026): blocks chosen by a walk across layers.

Each layer scores blocks against blocks, W, by sketched means of their queries and keys. The walk
R <- R W multiplies the layers' scores: a block counts if earlier layers lead to it, be it through
other blocks.

With `keys: box`, a form of ours, a block of keys is the box around them: the largest and smallest
of each coordinate, as in Quest (Tang et al., 2024), which bound what any of its keys can score.
A mean hides one key among many, a bound cannot. Quest decodes by it, each head for itself; here it
serves prefill too, and the heads' softmaxes are summed.
"""

import logging
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.apply import Forward
from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks, choose
from needlework.config.attention import SketchWalk

_log = logging.getLogger(__name__)
SCORES_AT_ONCE = 2**24
"""Largest number of block scores, over all heads, computed together."""


class Selector:
    """Scores blocks in one forward after another; what it remembers lies in the cache.

    For each sparse layer, float32, with r the dimension of the sketch and h, h_kv the heads told
    apart (1 for `heads: mean`): `keys` [batch, h_kv, blocks, r], sketched means of blocks, or
    their boxes [batch, h_kv, blocks, 2 r];
    `queries` [batch, h, block_size, r], sketched queries of the last block; `steps` [batch, blocks,
    blocks], the W of the layer, or with `walk_memory: sparse` its entries, k a row: `to` [batch,
    blocks, k], block numbers, and `weights` [batch, blocks, k]. With decode_queries above 1 also
    `recent` [batch, h, slots, r], the last tokens' sketched queries, and `recent_at` [batch,
    slots], their positions.
    """

    def __init__(self, system: SketchWalk):
        self.system = system
        self._sketches: dict[tuple[int, torch.device], Tensor] = {}

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor | None:
        """The walk R up to this layer [batch, rows, blocks], float32, each row of sum 1.

        Blocks that are kept or left out whatever their rank have +inf or -inf instead. None where
        decode stays dense.
        """
        blocks, held = forward.blocks, forward.state.tensors.setdefault(layer, {})
        held["keys"] = write_rows(held.get("keys"), self._keys(key, blocks), blocks)
        queries = self._sketched(self._heads(query))
        rows = self._query_rows(queries, forward, held)
        if forward.is_decode and self.system.skip_decode:
            # The walks of a prompt to come lead through these blocks.
            if self.system.walk != "off" and any(blocks.is_full):
                means = rows.sum(3) / blocks.seen
                self._remember(self._step(means, blocks, held["keys"]), blocks, held)
            return None
        if self.system.decode_queries > 1:
            self._hold_recent(queries, blocks, held)
        if forward.is_decode:
            # A token asks for itself; its block's mean asks once the block is full.
            asks = self._recent_mean(blocks, held) if "recent" in held else queries
        else:
            asks = rows.sum(3) / blocks.seen
        step = walk = self._step(asks, blocks, held["keys"])
        if self.system.walk != "off":
            self._remember(step, blocks, held)
            walk = self._walk(step, forward, held)
            if forward.is_decode and any(blocks.is_full):
                full = torch.tensor(blocks.is_full, device=step.device)[:, None, None]
                means = rows.sum(3) / blocks.seen
                done = torch.where(full, self._step(means, blocks, held["keys"]), step)
                self._remember(done, blocks, held)
        # softmax^s products underflow in a few layers; the order within a row is all that counts.
        forward.walk = _normalised(walk)
        return self._marked(forward.walk, forward)

    def _sketched(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., r]; as it is where there is no sketch."""
        d, device = x.shape[-1], x.device
        if self.system.sketch_dim is None:
            return x
        if (d, device) not in self._sketches:
            sketch = hadamard_sketch(d, self.system.sketch_dim, self.system.seed).to(device)
            _log.info("sketchwalk: heads of dimension %d sketched in %d", *sketch.shape)
            self._sketches[d, device] = sketch
        return x @ self._sketches[d, device]

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, heads, ..., d] -> the heads told apart [batch, h, ..., d], float32."""
        return x.float() if self.system.heads == "sum" else x.float().mean(1, keepdim=True)

    def _keys(self, key: Tensor, blocks: Blocks) -> Tensor:
        """What stands for the rows' blocks of keys, the real ones so far: their mean or their box
        [batch, h_kv, rows, r or 2 r]."""
        if self.system.keys == "box":
            return _box(self._sketched(self._heads(blocks.keys_of_rows(key))), blocks)
        return self._sketched(self._heads(blocks.key_sums_of_rows(key)) / blocks.seen)

    def _query_rows(self, queries: Tensor, forward: Forward, held: dict[str, Tensor]) -> Tensor:
        """Queries of the rows so far, 0 where no token is [batch, h, rows, size, r].

        When tokens decode, a row is right once it is full, and not asked for before: until then
        what stands after its last token is of the block before.
        """
        blocks = forward.blocks
        if "queries" in held and forward.is_decode and blocks.mask.is_causal:
            for b, first in enumerate(blocks.mask.first):
                slot = max(0, blocks.mask.start - first) % blocks.size
                held["queries"][b, :, slot] = queries[b, :, 0]
            return held["queries"][:, :, None]
        queries = blocks.of_queries(queries)
        if "queries" in held:
            # Without a sketch these may be the model's own.
            queries = queries.clone()
            queries[:, :, 0] += held["queries"] * blocks.is_earlier
        held["queries"] = torch.stack([queries[b, :, row] for b, row in enumerate(blocks.last)])
        return queries

    def _hold_recent(self, queries: Tensor, blocks: Blocks, held: dict[str, Tensor]) -> None:
        """Keep the last queries, the one at position p in slot p mod slots.

        A block more than are asked for, so that tokens cropped from the last block lose none.
        """
        batch, h, _, r = queries.shape
        slots, total = self.system.decode_queries + blocks.size, blocks.mask.total
        if "recent" not in held:
            held["recent"] = queries.new_zeros(batch, h, slots, r)
            held["recent_at"] = torch.full((batch, slots), -1, device=queries.device)
        new = torch.arange(max(blocks.mask.start, total - slots), total, device=queries.device)
        at = new.expand(batch, -1)
        if blocks.mask.real is not None:
            at = torch.where(blocks.mask.real[:, new], at, -1)
        held["recent"].index_copy_(2, new % slots, queries[:, :, -len(new) :])
        held["recent_at"].index_copy_(1, new % slots, at)

    def _recent_mean(self, blocks: Blocks, held: dict[str, Tensor]) -> Tensor:
        """Mean of the last decode_queries queries of each row of the batch [batch, h, 1, r]."""
        at, total = held["recent_at"], blocks.mask.total
        asked = (at >= max(0, total - self.system.decode_queries)) & (at < total)
        sums = (held["recent"] * asked[:, None, :, None]).sum(2, keepdim=True)
        return sums / asked.sum(-1).clamp_min(1).view(-1, 1, 1, 1)

    def _step(self, queries: Tensor, blocks: Blocks, keys: Tensor) -> Tensor:
        """W = (sum over heads of softmax_j c <S q_i, S k_j> / sqrt(r))^s over the causal blocks.

        c is score_scale. With `keys: box` the product is the most that a key in the box can score.
        For the damped walk each row is scaled to sum 1.
        """
        batch, h, _, r = queries.shape
        kv = keys.shape[1]
        queries = queries * (self.system.score_scale * r**-0.5)
        if self.system.keys == "box":
            queries = torch.cat([queries.clamp_min(0), queries.clamp_max(0)], -1)
        parts = []
        together = max(1, SCORES_AT_ONCE // (batch * h * blocks.count))
        for rows, future in zip(
            queries.split(together, 2), blocks.future.split(together, 1), strict=True
        ):
            scores = rows.reshape(batch, kv, -1, rows.shape[-1]) @ keys.transpose(-1, -2)
            scores = scores.view(batch, h, -1, blocks.count)
            weights = scores.masked_fill(future[:, None], -torch.inf).softmax(-1)
            parts.append(weights.sum(1) ** self.system.sparsity_exponent)
        step = torch.cat(parts, 1)
        return _normalised(step) if self.system.walk == "damped" else step

    def _remember(self, step: Tensor, blocks: Blocks, held: dict[str, Tensor]) -> None:
        """Put the rows of W among those of earlier forwards."""
        if self.system.walk_memory == "full":
            held["steps"] = write_rows(held.get("steps"), step, blocks)
            return
        for name, rows in zip(("to", "weights"), self._entries(step, blocks), strict=True):
            if name in held and held[name].shape[-1] > rows.shape[-1]:
                rows = functional.pad(rows, (0, held[name].shape[-1] - rows.shape[-1]))
            held[name] = write_rows(held.get(name), rows, blocks)

    def _walk(self, step: Tensor, forward: Forward, held: dict[str, Tensor]) -> Tensor:
        """R of this layer from that of the layer before."""
        if self.system.walk == "product":
            if forward.walk is None:
                return step
            return self._advance(forward.walk, forward.blocks, held)
        walk, damping = step if forward.walk is None else forward.walk, self.system.walk_damping
        for _ in range(self.system.walk_steps):
            walk = (1 - damping) * step + damping * self._advance(walk, forward.blocks, held)
        return walk

    def _advance(self, walk: Tensor, blocks: Blocks, held: dict[str, Tensor]) -> Tensor:
        """R W, of the entries that the rows of both keep if the memory holds no others."""
        if self.system.walk_memory == "full":
            return walk @ held["steps"]
        to, weights = self._entries(walk, blocks)
        found = torch.zeros_like(walk)
        together = max(1, SCORES_AT_ONCE // (to[:, 0].numel() * held["to"].shape[-1]))
        batch = torch.arange(len(walk), device=walk.device)[:, None, None]
        for start in range(0, blocks.rows, together):
            rows = slice(start, start + together)
            through = weights[:, rows, :, None] * held["weights"][batch, to[:, rows]]
            ends = held["to"][batch, to[:, rows]]
            found[:, rows].scatter_add_(2, ends.flatten(2), through.flatten(2))
        return found

    def _entries(self, x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Block numbers and values of what rows of W or R keep by rank [batch, rows, k].

        Shares and last rows keep blocks for attention alone: they depend on the prompt's length.
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
        """Scores with +inf where a block is surely kept, -inf where one surely is not."""
        system, blocks = self.system, forward.blocks
        if not system.marks_blocks:
            return walk
        tokens = forward.tokens
        number = torch.arange(blocks.count, device=walk.device)
        sinks = self._share(system.sink_share, tokens, number)
        local = self._share(system.local_share, tokens, number)
        sure = (number < sinks) | (number > blocks.number[..., None] - local)
        if system.select == "quantile":
            walk = self._above_quantile(walk, ~(blocks.future | sure))
        if not forward.is_decode:
            ends = number.new_tensor([-(-n // blocks.size) for n in tokens])
            is_last = blocks.number >= ends[:, None] - system.dense_last_rows
            sure = sure | is_last[..., None]
        return walk.masked_fill(sure, torch.inf)

    def _share(self, share: float, tokens: list[int], number: Tensor) -> Tensor:
        """Blocks that make up a share of each row's tokens, rounded up [batch, 1, 1]."""
        # As the decimal that was written.
        size = self.system.block_size
        found = [-int(-Fraction(str(share)) * n / size // 1) for n in tokens]
        return number.new_tensor(found).view(-1, 1, 1)


def _normalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _box(x: Tensor, blocks: Blocks) -> Tensor:
    """The largest, then the smallest of each coordinate over the real tokens of each row's block
    [batch, h, rows, size, r] -> [batch, h, rows, 2 r]; 0 where there is none."""
    box = torch.cat([x.amax(3), x.amin(3)], -1)
    # Copying all of x to mask a few tokens would cost more than the choice of blocks.
    partial = (blocks.seen < blocks.size)[:, 0, :, 0]
    tokens = x.transpose(1, 2)[partial]
    missing = ~blocks.is_seen[:, 0][partial][:, None]
    largest = tokens.masked_fill(missing, -torch.inf).amax(2)
    smallest = tokens.masked_fill(missing, torch.inf).amin(2)
    box.transpose(1, 2)[partial] = torch.cat([largest, smallest], -1)
    return box.masked_fill_(box.isinf(), 0)


def _quantile(x: Tensor, ranked: Tensor, quantile: float) -> Tensor:
    """Of each row's entries where `ranked` is true, between two by linear interpolation [batch,
    rows, 1]; +inf or NaN where none is."""
    ordered = x.masked_fill(~ranked, torch.inf).sort(-1).values
    last = (ranked.sum(-1, keepdim=True) - 1).clamp_min(0)
    place = last.double() * quantile
    low = place.floor().long()
    below, above = (ordered.gather(2, at) for at in (low, torch.minimum(low + 1, last)))
    return torch.lerp(below, above, (place - low).to(x.dtype))


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
