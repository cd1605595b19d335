"""Block-sparse attention: how tokens fall into blocks, which blocks a row keeps, and exact
attention over those, by gathering their keys.

Blocks of each row of the batch are counted from its first real token, so padding on the left moves
no block. A forward brings the queries of some blocks (its rows); the first of them may have begun
in an earlier forward, the last may be incomplete.
"""

from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.masks import LazyMask
from needlework.config.systems import BlockSparse

# Numbers gathered at once. Larger outgrows the CPU's cache, smaller leaves a GPU idle.
GATHERED = {"cpu": 2**17, "cuda": 2**26}
# Queries that gather together. More make larger products, and gather more that some do not want.
TILE_TOKENS = 32


class Blocks:
    """The blocks of one forward, the same for every layer.

    `rows` blocks of queries, the first of them block `begin[b]` of batch row b; `count` blocks of
    keys. In a batch of unlike padding some rows and blocks are empty.
    """

    def __init__(self, mask: LazyMask, system: BlockSparse, device: torch.device):
        self.mask, self.system, self.device = mask, system, device
        self.size = size = system.block_size
        self.begin = [max(0, mask.start - first) // size for first in mask.first]
        ends = [-(-max(0, mask.total - first) // size) for first in mask.first]
        self.rows = max(1, *[end - begin for begin, end in zip(self.begin, ends, strict=True)])
        self.count = max(self.begin) + self.rows

    @property
    def query_starts(self) -> list[int]:
        """Where the first row of blocks begins, counted from the first new token."""
        return [
            first + begin * self.size - self.mask.start
            for first, begin in zip(self.mask.first, self.begin, strict=True)
        ]

    @cached_property
    def first(self) -> Tensor:
        """Position of the first real token of each row of the batch [batch], int64."""
        return torch.tensor(self.mask.first, device=self.device)

    @cached_property
    def token(self) -> Tensor:
        """0 .. size - 1, int64."""
        return torch.arange(self.size, device=self.device)

    @cached_property
    def number(self) -> Tensor:
        """The block that each row is [batch, rows], int64."""
        begin = torch.tensor(self.begin, device=self.device)
        return begin[:, None] + torch.arange(self.rows, device=self.device)

    @cached_property
    def future(self) -> Tensor:
        """True where a block comes after the row [batch, rows, blocks]."""
        return torch.arange(self.count, device=self.device) > self.number[..., None]

    @cached_property
    def own(self) -> Tensor:
        """True where a block is the row itself [batch, rows, blocks]."""
        return torch.arange(self.count, device=self.device) == self.number[..., None]

    @cached_property
    def kept(self) -> Tensor:
        """How many blocks each row keeps [batch, rows, 1], int64."""
        kept = [
            [kept_blocks(self.system, begin + row) for row in range(self.rows)]
            for begin in self.begin
        ]
        return torch.tensor(kept, device=self.device)[..., None]

    @cached_property
    def slots(self) -> int:
        """The most blocks that any row keeps."""
        return kept_blocks(self.system, self.count - 1)

    @cached_property
    def is_empty(self) -> Tensor:
        """True at the slots that a row leaves empty [batch, rows, slots]."""
        return torch.arange(self.slots, device=self.device) >= self.kept

    @cached_property
    def is_new(self) -> Tensor:
        """True at the tokens of each row that are queries of this forward [batch, rows, size]."""
        new = torch.ones(
            self.mask.batch_size, 1, self.mask.length, 1, dtype=torch.bool, device=self.device
        )
        if self.mask.real is not None:
            new = self.mask.real[:, None, self.mask.start :, None]
        return self.of_queries(new)[:, 0, ..., 0]

    @cached_property
    def last(self) -> list[int]:
        """The last row that holds a token, for each row of the batch; 0 where none does."""
        blocks = [-(-(self.mask.total - first) // self.size) for first in self.mask.first]
        return [max(0, n - 1 - b) for n, b in zip(blocks, self.begin, strict=True)]

    @cached_property
    def is_full(self) -> list[bool]:
        """Whether the last block of each row of the batch is complete."""
        seen = [self.mask.total - first for first in self.mask.first]
        return [n > 0 and n % self.size == 0 for n in seen]

    @cached_property
    def is_earlier(self) -> Tensor:
        """1 at tokens of the first row that came before this forward [batch, 1, size, 1]."""
        before = [max(0, self.mask.start - first) % self.size for first in self.mask.first]
        before = torch.tensor(before, device=self.device)
        return (self.token < before[:, None]).float()[:, None, :, None]

    @cached_property
    def seen(self) -> Tensor:
        """Real tokens of each row's block so far, at least 1 [batch, 1, rows, 1], float32."""
        real = self.mask.real
        if real is None:
            real = torch.ones(self.mask.batch_size, self.mask.total, device=self.device)
        return self._keys_of_rows(real.float()[:, None, :, None]).sum(3).clamp_min(1)

    def keys_of_rows(self, x: Tensor) -> Tensor:
        """As of_keys, but the rows' own blocks alone: [batch, heads, rows, size, d]."""
        if self.mask.real is not None and not self.mask.is_causal:
            x = x * self.mask.real[:, None, :, None]
        return self._keys_of_rows(x)

    def _keys_of_rows(self, x: Tensor) -> Tensor:
        starts = [
            first + begin * self.size
            for first, begin in zip(self.mask.first, self.begin, strict=True)
        ]
        return shift(x, starts, self.rows * self.size).unflatten(2, (-1, self.size))

    def of_queries(self, x: Tensor) -> Tensor:
        """[batch, heads, new tokens, d] -> [batch, heads, rows, size, d], 0 where no token is."""
        if self.mask.real is not None and not self.mask.is_causal:
            x = x * self.mask.real[:, None, self.mask.start :, None]
        return shift(x, self.query_starts, self.rows * self.size).unflatten(2, (-1, self.size))

    def of_keys(self, x: Tensor) -> Tensor:
        """[batch, heads, all tokens, d] -> [batch, heads, blocks, size, d], 0 where no token is."""
        return shift(x, self.mask.first, self.count * self.size).unflatten(2, (-1, self.size))

    def tokens(self, x: Tensor) -> Tensor:
        """Undo of_queries: [batch, heads, rows, size, d] -> [batch, heads, new tokens, d]."""
        return shift(x.flatten(2, 3), [-start for start in self.query_starts], self.mask.length)


def shift(x: Tensor, starts: list[int], length: int) -> Tensor:
    """x[b, :, starts[b] : starts[b] + length], with 0 beyond either end of x [batch, h, n, d]."""
    if len(set(starts)) > 1:
        parts = [shift(x[b : b + 1], [start], length) for b, start in enumerate(starts)]
        return torch.cat(parts)
    n, start = x.shape[2], starts[0]
    low, high = min(max(start, 0), n), min(max(start + length, 0), n)
    before = min(max(-start, 0), length) if high > low else 0
    x = x[:, :, low:high]
    after = length - before - x.shape[2]
    return functional.pad(x, (0, 0, before, after)) if before or after else x


def kept_blocks(system: BlockSparse, row: int) -> int:
    """Blocks that row `row` (counted from 0) keeps: ceil(density (row + 1)), or top_k_blocks."""
    if system.density is None:
        return min(system.top_k_blocks, row + 1)
    # As the decimal that was written: 0.1 * 30 is above 3 in binary.
    return -int(-Fraction(str(system.density)) * (row + 1) // 1)


def choose(scores: Tensor, blocks: Blocks) -> Tensor:
    """The blocks kept by each row: its own, and those of highest score before it.

    Of equal scores the earlier block wins. scores [batch, rows, blocks]; returns block numbers
    [batch, rows, k] int64, the row's own in slot 0, -1 in slots that stay empty.
    """
    scores = scores.masked_fill(blocks.future, -torch.inf).masked_fill(blocks.own, torch.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : blocks.slots]
    return order.masked_fill(blocks.is_empty, -1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: Tensor,
    blocks: Blocks,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact attention of every head over the chosen blocks, with the mask of each token.

    query [batch, heads, new tokens, d]; key, value [batch, kv heads, all tokens, d]; chosen as
    `choose` returns it. Softcap as in Gemma 2, sinks [heads] as in GPT-OSS. Returns the output
    [batch, heads, new tokens, d_v] and the number of pairs of real tokens attended to (0-dim
    tensor).
    """
    terms = {"scaling": scaling, "dropout": dropout, "softcap": softcap, "sinks": sinks}
    if query.shape[2] == 1:
        return _attend_token(query, key, value, chosen, blocks, terms)
    batch, heads, kv_heads, size = len(query), query.shape[1], key.shape[1], blocks.size
    # Neighbouring rows share most of their blocks: a tile of rows gathers what any of them chose.
    tile = max(1, TILE_TOKENS // size)
    extra = -blocks.rows % tile
    queries = functional.pad(blocks.of_queries(query), (0, 0, 0, 0, 0, extra)).flatten(2, 3)
    queries = queries.unflatten(2, (-1, tile * size)).transpose(1, 2)
    chosen = functional.pad(_as_mask(chosen, blocks), (0, 0, 0, extra)).unflatten(1, (-1, tile))
    union = chosen.any(2)
    order = union.byte().sort(dim=-1, descending=True, stable=True).indices
    widths = union.sum(-1).amax(0).tolist()
    keys = blocks.of_keys(key).reshape(-1, size * key.shape[-1])
    values = blocks.of_keys(value).reshape(-1, size * value.shape[-1])
    heads_at = torch.arange(batch * kv_heads, device=query.device).view(batch, 1, -1, 1)
    limit = GATHERED.get(query.device.type, GATHERED["cpu"]) // (batch * kv_heads * key.shape[-1])
    out, masks, start = [], [], 0
    while start < len(widths):
        end = min(len(widths), start + max(1, limit // (widths[start] * size)))
        width = max(widths[start:end])
        index = order[:, start:end, :width]
        mask = _mask(chosen[:, start:end], index, start * tile, blocks)
        gathered = (heads_at * blocks.count + index[:, :, None]).flatten()
        shape = (batch * (end - start), kv_heads, width * size, -1)
        attended = _attention(
            queries[:, start:end].reshape(*shape[:2], heads // kv_heads * tile * size, -1),
            keys.index_select(0, gathered).view(shape),
            values.index_select(0, gathered).view(shape),
            mask.flatten(0, 1)[:, None],
            terms,
        )
        out.append(attended.view(batch, end - start, heads, tile * size, -1))
        masks.append(mask.sum(-1))
        start = end
    out = torch.cat(out, 1).transpose(1, 2).flatten(2, 3).unflatten(2, (-1, size))
    pairs = torch.cat(masks, 1).view(batch, -1, size)[:, : blocks.rows] * blocks.is_new
    return blocks.tokens(out[:, :, : blocks.rows]), pairs.sum()


def _as_mask(chosen: Tensor, blocks: Blocks) -> Tensor:
    """Block numbers [batch, rows, k], -1 for none, as a mask [batch, rows, blocks]."""
    mask = chosen.new_zeros(*chosen.shape[:2], blocks.count + 1, dtype=torch.bool)
    return mask.scatter_(2, chosen.remainder(blocks.count + 1), True)[..., :-1]


def _mask(chosen: Tensor, index: Tensor, row: int, blocks: Blocks) -> Tensor:
    """Mask of the queries of some tiles over the tokens of the blocks that they gathered.

    chosen [batch, tiles, tile, blocks]; index [batch, tiles, k], the blocks gathered; row is the
    first tile's first row. Returns [batch, tiles, tile * size, k * size].
    """
    size, (batch, tiles, tile, _) = blocks.size, chosen.shape
    device = chosen.device
    chosen = chosen.gather(3, index[:, :, None].expand(-1, -1, tile, -1))
    numbers = torch.arange(row, row + tiles * tile, device=device).view(tiles, tile)
    numbers = numbers + torch.tensor(blocks.begin, device=device)[:, None, None]
    token = blocks.token
    if blocks.mask.is_causal:
        earlier = index[:, :, None] < numbers[..., None]
        allowed = earlier[..., None, :, None] | (token <= token[:, None])[:, None]
    else:
        first = blocks.first.view(-1, *[1] * 5)
        rows = torch.arange(batch, device=device).view(-1, *[1] * 5)
        queries = first + numbers[..., None, None, None] * size + token[:, None, None]
        keys = first + index[:, :, None, None, :, None] * size + token
        allowed = blocks.mask.at(rows, queries.clamp_max(blocks.mask.total - 1), keys)
    allowed = allowed & chosen[:, :, :, None, :, None]
    return allowed.view(batch, tiles, tile * size, -1)


def _attend_token(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: dict
) -> tuple[Tensor, Tensor]:
    """`attend` for one new token a row, with as few small operations as it takes."""
    batch, heads, kv_heads, total = *query.shape[:2], key.shape[1], key.shape[2]
    device = query.device
    position = blocks.first[:, None, None] + chosen[:, 0, :, None] * blocks.size + blocks.token
    allowed = (position < blocks.mask.total) & (chosen[:, 0, :, None] >= 0)
    allowed, position = allowed.flatten(1), position.flatten(1).clamp(0, total - 1)
    rows = torch.arange(batch, device=device)[:, None]
    if not blocks.mask.is_causal:
        last = torch.full_like(position[:, :1], total - 1)
        allowed = allowed & blocks.mask.at(rows, last, position)
    kv = torch.arange(kv_heads, device=device)
    index = (((rows * kv_heads + kv) * total)[..., None] + position[:, None]).flatten()
    out = _attention(
        query.reshape(batch, kv_heads, heads // kv_heads, -1),
        key.flatten(0, 2).index_select(0, index).view(batch, kv_heads, -1, key.shape[-1]),
        value.flatten(0, 2).index_select(0, index).view(batch, kv_heads, -1, value.shape[-1]),
        allowed[:, None, None],
        terms,
    )
    if blocks.mask.real is not None:
        allowed = allowed & blocks.mask.real[:, -1:]
    return out.reshape(batch, heads, 1, -1), allowed.sum()


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, terms: dict) -> Tensor:
    """Masked attention; query [b, kv heads, group * t, d], mask [b, 1, t, k], sinks [heads]."""
    kv_heads, t = query.shape[1], mask.shape[2]
    group = query.shape[2] // t
    if group > 1 and t > 1:
        mask = mask.repeat(1, 1, group, 1)
    if terms["softcap"] is None and terms["sinks"] is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=terms["dropout"], scale=terms["scaling"]
        )
    scale = query.shape[-1] ** -0.5 if terms["scaling"] is None else terms["scaling"]
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    if terms["softcap"] is not None:
        scores = torch.tanh(scores / terms["softcap"]) * terms["softcap"]
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if terms["sinks"] is not None:
        sinks = terms["sinks"].float().view(kv_heads, group).repeat_interleave(t, -1)
        scores = torch.cat([scores, sinks[None, ..., None].expand(len(scores), -1, -1, 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return functional.dropout(weights, terms["dropout"]) @ value
