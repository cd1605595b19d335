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
    def number(self) -> Tensor:
        """The block that each row is [batch, rows], int64."""
        begin = torch.tensor(self.begin, device=self.device)
        return begin[:, None] + torch.arange(self.rows, device=self.device)

    @cached_property
    def future(self) -> Tensor:
        """True where a block comes after the row [batch, rows, blocks]."""
        return torch.arange(self.count, device=self.device) > self.number[..., None]

    @cached_property
    def kept(self) -> Tensor:
        """How many blocks each row keeps [batch, rows], int64."""
        kept = [
            [kept_blocks(self.system, begin + row) for row in range(self.rows)]
            for begin in self.begin
        ]
        return torch.tensor(kept, device=self.device)

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
        token = torch.arange(self.size, device=self.device)
        before = torch.tensor(before, device=self.device)
        return (token < before[:, None]).float()[:, None, :, None]

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
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, blocks.number[..., None], True)
    scores = scores.masked_fill(blocks.future, -torch.inf).masked_fill(own, torch.inf)
    k = kept_blocks(blocks.system, blocks.count - 1)
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    empty = torch.arange(k, device=scores.device) >= blocks.kept[..., None]
    return order.masked_fill(empty, -1)


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
    heads, kv_heads, size = query.shape[1], key.shape[1], blocks.size
    group = heads // kv_heads
    queries = blocks.of_queries(query).transpose(1, 2)
    keys = blocks.of_keys(key).reshape(-1, size * key.shape[-1])
    values = blocks.of_keys(value).reshape(-1, size * value.shape[-1])
    batch = torch.arange(len(chosen), device=chosen.device)
    offset = (batch[:, None] * kv_heads + torch.arange(kv_heads, device=chosen.device)) * (
        blocks.count
    )
    out, pairs = [], torch.zeros((), dtype=torch.int64, device=query.device)
    row = 0
    while row < blocks.rows:
        # Rows of one part share a width, that of the last, so a part is as wide as few rows need.
        width = kept_blocks(blocks.system, max(blocks.begin) + row)
        per_row = len(chosen) * kv_heads * width * size * key.shape[-1]
        end = min(blocks.rows, row + max(1, GATHERED.get(query.device.type, 2**17) // per_row))
        width = kept_blocks(blocks.system, max(blocks.begin) + end - 1)
        part = chosen[:, row:end, :width]
        mask = _mask(part, slice(row, end), blocks)
        index = (offset[:, None, :, None] + part.clamp_min(0)[:, :, None]).flatten()
        shape = (part.shape[0] * part.shape[1], kv_heads, width * size, -1)
        attended = _attention(
            queries[:, row:end].reshape(shape[0], kv_heads, group * size, -1),
            keys.index_select(0, index).view(shape),
            values.index_select(0, index).view(shape),
            mask.flatten(0, 1)[:, None],
            terms,
        )
        out.append(attended.reshape(*part.shape[:2], heads, size, -1))
        pairs = pairs + (mask.sum(-1) * blocks.is_new[:, row:end]).sum()
        row = end
    return blocks.tokens(torch.cat(out, 1).transpose(1, 2)), pairs


def _mask(chosen: Tensor, rows: slice, blocks: Blocks) -> Tensor:
    """Mask of the queries of some rows over their chosen blocks [batch, rows, size, k * size]."""
    size, mask = blocks.size, blocks.mask
    if mask.is_causal:
        allowed = (chosen >= 0)[:, :, None, :, None].repeat(1, 1, size, 1, size)
        allowed[:, :, :, 0] = torch.ones(size, size, dtype=torch.bool, device=chosen.device).tril()
        return allowed.flatten(3)
    token = torch.arange(size, device=chosen.device)
    first = torch.tensor(mask.first, device=chosen.device)[:, None, None]
    queries = first + blocks.number[:, rows, None] * size + token
    keys = (first[..., None] + chosen[..., None] * size + token).flatten(2)
    batch = torch.arange(len(chosen), device=chosen.device)[:, None, None, None]
    last = mask.total - 1
    allowed = mask.at(batch, queries[..., None].clamp_max(last), keys[:, :, None])
    return allowed & (chosen >= 0).repeat_interleave(size, -1)[:, :, None]


def _attend_token(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: dict
) -> tuple[Tensor, Tensor]:
    """`attend` for one new token a row, with as few small operations as it takes."""
    batch, heads, kv_heads, total = *query.shape[:2], key.shape[1], key.shape[2]
    device = query.device
    first = torch.tensor(blocks.mask.first, device=device)[:, None, None]
    position = (
        first + chosen[:, 0, :, None] * blocks.size + torch.arange(blocks.size, device=device)
    )
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
