"""Block-sparse attention by gathering: copy the chosen blocks side by side, then attend to them.

It serves every mask, device and dtype, gradients and dropout; tokens that decode always come here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.blocks import Blocks, causal_pairs

# Numbers gathered at once. Larger outgrows the CPU's cache, smaller leaves a GPU idle.
GATHERED = {"cpu": 2**17, "cuda": 2**26}
# Queries that gather together. More make larger products, and gather more that some do not want.
TILE_TOKENS = 32


class Terms(NamedTuple):
    """What a model's attention adds to softmax(scaling q k^T) v."""

    scaling: float
    dropout: float = 0.0
    softcap: float | None = None
    """Scores become softcap tanh(score / softcap) (Gemma 2)."""
    sinks: Tensor | None = None
    """A score by head that takes a share of the softmax and brings no value [heads] (GPT-OSS)."""


def gather(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: Terms
) -> tuple[Tensor, Tensor]:
    """`attend` for any number of new tokens; see kernels.attend for shapes."""
    batch, heads, kv_heads, size = len(query), query.shape[1], key.shape[1], blocks.size
    # Neighbouring rows share most of their blocks: a tile of rows gathers what any of them chose.
    tile = max(1, TILE_TOKENS // size)
    extra = -blocks.rows % tile
    queries = functional.pad(blocks.of_queries(query), (0, 0, 0, 0, 0, extra)).flatten(2, 3)
    queries = queries.unflatten(2, (-1, tile * size)).transpose(1, 2)
    wanted = functional.pad(_as_mask(chosen, blocks), (0, 0, 0, extra)).unflatten(1, (-1, tile))
    union = wanted.any(2)
    order = union.byte().sort(dim=-1, descending=True, stable=True).indices
    widths = union.sum(-1).amax(0).tolist()
    keys = blocks.of_keys(key).reshape(-1, size * key.shape[-1])
    values = blocks.of_keys(value).reshape(-1, size * value.shape[-1])
    heads_at = torch.arange(batch * kv_heads, device=query.device).view(batch, 1, -1, 1)
    limit = GATHERED.get(query.device.type, GATHERED["cpu"]) // (batch * kv_heads * key.shape[-1])
    out, pairs, start = [], [], 0
    while start < len(widths):
        end = min(len(widths), start + max(1, limit // (widths[start] * size)))
        width = max(widths[start:end])
        index = order[:, start:end, :width]
        mask = _mask(wanted[:, start:end], index, start * tile, blocks)
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
        if not blocks.mask.is_causal:
            pairs.append(mask.sum(-1))
        start = end
    out = torch.cat(out, 1).transpose(1, 2).flatten(2, 3).unflatten(2, (-1, size))
    if blocks.mask.is_causal:
        count = causal_pairs(chosen, blocks)
    else:
        pairs = torch.cat(pairs, 1).view(batch, -1, size)[:, : blocks.rows]
        count = (pairs * blocks.is_new).sum()
    return blocks.tokens(out[:, :, : blocks.rows]), count


def gather_token(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: Terms
) -> tuple[Tensor, Tensor]:
    """`attend` for one new token a row, with as few small operations as it takes."""
    batch, heads, kv_heads, total = *query.shape[:2], key.shape[1], key.shape[2]
    chosen, size = chosen[:, 0], min(blocks.size, total)
    begins = blocks.first[:, None] + chosen * blocks.size
    # A block that the tokens so far do not fill is read from earlier on, to lie within the cache.
    starts = begins.clamp(0, total - size)
    position = starts[..., None] + blocks.token[:size]
    allowed = ((position >= begins[..., None]) & (chosen >= 0)[..., None]).flatten(1)
    if not blocks.mask.is_causal:
        rows = torch.arange(batch, device=query.device)[:, None]
        position = position.flatten(1)
        last = torch.full_like(position[:, :1], total - 1)
        allowed = allowed & blocks.mask.at(rows, last, position)
    group, limit = heads // kv_heads, GATHERED.get(query.device.type, GATHERED["cpu"])
    together = min(kv_heads, max(1, limit // (allowed.numel() * key.shape[-1])))
    while kv_heads % together:
        together -= 1
    queries = query.reshape(batch, kv_heads, group, -1).split(together, 1)
    sinks = [None] * len(queries) if terms.sinks is None else terms.sinks.split(together * group)
    keys, values = (_windows(x, starts, size, together) for x in (key, value))
    out = [
        _attention(q, k, v, allowed[:, None, None], terms._replace(sinks=s))
        for q, k, v, s in zip(queries, keys, values, sinks, strict=True)
    ]
    if blocks.mask.real is not None:
        allowed = allowed & blocks.mask.real[:, -1:]
    return torch.cat(out, 1).reshape(batch, heads, 1, -1), allowed.sum()


def _windows(x: Tensor, starts: Tensor, size: int, together: int) -> Iterator[Tensor]:
    """`size` tokens from each of starts [batch, k], for so many heads of x [batch, heads, n, d] at
    a time: [batch, together, k * size, d].

    Tokens lie one after another, so each window is copied as one piece.
    """
    batch, heads, n, d = x.shape
    if x.stride()[2:] != (d, 1) or x.stride(0) % d or x.stride(1) % d:
        x = x.contiguous()
    # In units of tokens: where each head of each row begins.
    row, head = x.stride(0) // d, x.stride(1) // d
    last = (batch - 1) * row + (together - 1) * head + n - size
    begins = torch.arange(batch, device=x.device)[:, None] * row
    begins = begins + torch.arange(together, device=x.device) * head
    index = (begins[..., None] + starts[:, None]).flatten()
    for first in range(0, heads, together):
        windows = x[:, first:].as_strided((last + 1, size * d), (d, 1))
        yield windows.index_select(0, index).view(batch, together, -1, d)


def _as_mask(chosen: Tensor, blocks: Blocks) -> Tensor:
    """Block numbers [batch, rows, k], -1 for none, as a mask [batch, rows, blocks]."""
    mask = chosen.new_zeros(*chosen.shape[:2], blocks.count + 1, dtype=torch.bool)
    return mask.scatter_(2, chosen.remainder(blocks.count + 1), True)[..., :-1]


def _mask(wanted: Tensor, index: Tensor, row: int, blocks: Blocks) -> Tensor:
    """Mask of the queries of some tiles over the tokens of the blocks that they gathered.

    wanted [batch, tiles, tile, blocks]; index [batch, tiles, k], the blocks gathered; row is the
    first tile's first row. Returns [batch, tiles, tile * size, k * size].
    """
    size, (batch, tiles, tile, _) = blocks.size, wanted.shape
    device = wanted.device
    wanted = wanted.gather(3, index[:, :, None].expand(-1, -1, tile, -1))
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
    allowed = allowed & wanted[:, :, :, None, :, None]
    return allowed.view(batch, tiles, tile * size, -1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    """Masked attention; query [b, kv heads, group * t, d], mask [b, 1, t, k], sinks [heads]."""
    kv_heads, t = query.shape[1], mask.shape[2]
    group = query.shape[2] // t
    if group > 1 and t > 1:
        mask = mask.repeat(1, 1, group, 1)
    is_plain = terms.softcap is None and terms.sinks is None
    # For one query in bfloat16, sdpa on CPU takes twice to ten times what the products below do.
    is_slow = t == 1 and query.device.type == "cpu" and query.dtype != torch.float32
    if is_plain and not is_slow:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=terms.dropout, scale=terms.scaling
        )
    scores = query.float() @ key.float().transpose(-1, -2) * terms.scaling
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(kv_heads, group).repeat_interleave(t, -1)
        scores = torch.cat([scores, sinks[None, ..., None].expand(len(scores), -1, -1, 1)], -1)
    weights = functional.dropout(scores.softmax(-1)[..., : key.shape[2]], terms.dropout)
    return (weights @ value.float()).to(value.dtype)
