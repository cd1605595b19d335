"""Block-sparse attention by gathering: copy the chosen blocks into one tensor and attend to it.

Supports every mask, device and dtype, gradients and dropout. Decoding always uses it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.blocks import Blocks, causal_pairs, joined, ranked_together

GATHER_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}
"""Elements gathered together: more would exceed the CPU's cache, fewer would leave a GPU idle."""
TILE_TOKENS = 32
"""Queries that gather together: more mean larger products, but more blocks that some do not use."""


class SoftmaxTerms(NamedTuple):
    """What a model's attention adds to softmax(scaling q k^T) v."""

    scaling: float
    dropout: float = 0.0
    softcap: float | None = None
    """Scores become softcap tanh(score / softcap) (Gemma 2)."""
    sinks: Tensor | None = None
    """One score per head [heads] in the softmax's denominator, with no value (GPT-OSS)."""


def gather(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> tuple[Tensor, Tensor]:
    """`attend` for any number of new tokens; see there for shapes."""
    heads, kv_heads, size, choices = query.shape[1], key.shape[1], blocks.size, chosen.shape[1]
    # Each choice becomes a row of the batch, and reads `kv_read` kv heads.
    batch, kv_read = len(query) * choices, max(1, kv_heads // choices)
    # Adjacent rows share most of their blocks: a tile of rows gathers the union of their choices.
    tile = max(1, TILE_TOKENS // size)
    extra = -blocks.rows % tile
    queries = functional.pad(blocks.of_queries(query), (0, 0, 0, 0, 0, extra)).flatten(2, 3)
    queries = queries.reshape(batch, heads // choices, -1, tile * size, queries.shape[-1])
    queries = queries.transpose(1, 2)
    kept = _as_mask(chosen.flatten(0, 1), blocks)
    kept = functional.pad(kept, (0, 0, 0, extra)).unflatten(1, (-1, tile))
    union = kept.any(2)
    widths = union.sum(-1).amax(0).tolist()
    together, widest = ranked_together(union[0].numel()), max(widths)
    order = torch.cat(
        [
            part.byte().sort(dim=-1, descending=True, stable=True).indices[..., :widest]
            for part in union.split(together)
        ]
    )
    keys = blocks.of_keys(key).reshape(-1, size * key.shape[-1])
    values = blocks.of_keys(value).reshape(-1, size * value.shape[-1])
    heads_at = torch.arange(batch, device=query.device) * kv_heads // choices
    heads_at = heads_at.view(-1, 1, 1, 1) + torch.arange(kv_read, device=query.device)[:, None]
    sinks = terms.sinks
    if sinks is not None:
        sinks = sinks.view(choices, kv_read, -1).repeat(len(query), 1, 1)
    limit = GATHER_ELEMENTS.get(query.device.type, GATHER_ELEMENTS["cpu"]) // (
        batch * kv_read * key.shape[-1]
    )
    outputs: list[Tensor] = []
    pairs: list[Tensor] = []
    start = 0
    while start < len(widths):
        end = min(len(widths), start + max(1, limit // (widths[start] * size)))
        width = max(widths[start:end])
        index = order[:, start:end, :width]
        mask = _mask(kept[:, start:end], index, start * tile, blocks)
        gathered = (heads_at * blocks.count + index[:, :, None]).flatten()
        shape = (batch * (end - start), kv_read, width * size, -1)
        attended = _attention(
            queries[:, start:end].reshape(
                *shape[:2], heads * tile * size // (choices * kv_read), -1
            ),
            keys.index_select(0, gathered).view(shape),
            values.index_select(0, gathered).view(shape),
            mask.flatten(0, 1)[:, None],
            terms,
            None if sinks is None else sinks.repeat_interleave(end - start, 0),
        )
        outputs.append(attended.view(batch, end - start, heads // choices, tile * size, -1))
        if not blocks.mask.is_causal:
            pairs.append(mask.sum(-1))
        start = end
    out = (
        torch.cat(outputs, 1).transpose(1, 2).reshape(len(query), heads, -1, size, value.shape[-1])
    )
    if blocks.mask.is_causal:
        count = causal_pairs(chosen, blocks)
    else:
        by_token = torch.cat(pairs, 1).view(len(query), choices, -1, size)[:, :, : blocks.rows]
        count = (by_token * blocks.is_new[:, None]).sum().double() / choices
    return blocks.tokens(out[:, :, : blocks.rows]), count


def gather_token(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> tuple[Tensor, Tensor]:
    """`attend` for one new token per row, with few small operations."""
    batch, heads, kv_heads, total = *query.shape[:2], key.shape[1], key.shape[2]
    choices, size = chosen.shape[1], min(blocks.size, total)
    starts, position, hidden = blocks.of_choice(
        "table", lambda: _token_table(chosen[:, :, 0], total, blocks)
    )
    # Each kv head reads blocks, or each head if choices are per head.
    readers = max(kv_heads, choices)
    queries = query.reshape(batch, readers, heads // readers, -1)
    hidden, sinks = hidden[:, :, None], terms.sinks
    if sinks is not None:
        sinks = sinks.view(1, readers, -1).expand(batch, -1, -1)
    keys, key_begins = _rows(key, readers, blocks)
    values, begins = _rows(value, readers, blocks)
    windows = _windows(keys, size), (key_begins[..., None] + starts).flatten()
    if query.device.type == "cpu":
        length = hidden.shape[-1]
        together = max(1, GATHER_ELEMENTS["cpu"] // (length * key.shape[-1]))
        parts = zip(
            (queries.float() * terms.scaling).flatten(0, 1).split(together),
            windows[1].split(together * starts.shape[-1]),
            strict=True,
        )
        parts_of_scores = [
            q.bmm(windows[0].index_select(0, at).view(len(q), length, -1).float().transpose(1, 2))
            for q, at in parts
        ]
        scores = joined(parts_of_scores).view(*queries.shape[:3], length)
        weights = _softmax(scores, hidden, terms, sinks).to(value.dtype)
        # embedding_bag sums rows of values without copying them; there is no such function for q k.
        rows = (begins[..., None] + position)[:, :, None].expand(weights.shape)
        out = functional.embedding_bag(
            rows.reshape(batch * heads, -1),
            values,
            per_sample_weights=weights.view(batch * heads, -1),
            mode="sum",
        )
    else:
        shape = (batch, readers, hidden.shape[-1], -1)
        keys = windows[0].index_select(0, windows[1]).view(shape)
        at = (begins[..., None] + starts).flatten()
        values = _windows(values, size).index_select(0, at).view(shape)
        out = _attention(queries, keys, values, ~hidden, terms, sinks)
    return out.view(batch, heads, 1, -1), blocks.of_choice(
        "pairs", lambda: _token_pairs(hidden, choices, blocks)
    )


def _token_table(chosen: Tensor, total: int, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Where one new token per row reads chosen blocks [batch, choices, k]: first positions of runs
    of tokens [batch, choices, k], all positions [batch, choices, k * size], and which of them are
    masked."""
    size = min(blocks.size, total)
    begins = blocks.first[:, None, None] + chosen * blocks.size
    if blocks.has_empty:
        begins = begins.masked_fill(chosen < 0, total)
    # An incomplete last block is read from an earlier start, so that it lies within the cache.
    starts = begins.clamp_max(total - size)
    position = starts[..., None] + blocks.token[:size]
    hidden = (position < begins[..., None]).flatten(2)
    position = position.flatten(2)
    if not blocks.mask.is_causal:
        rows = torch.arange(len(chosen), device=chosen.device)[:, None, None]
        last = torch.full_like(position[..., :1], total - 1)
        hidden = hidden | ~blocks.mask.at(rows, last, position)
    return starts, position, hidden


def _token_pairs(hidden: Tensor, choices: int, blocks: Blocks) -> Tensor:
    """Pairs that `gather_token` attends to (0-dim float64)."""
    if blocks.mask.is_causal and not blocks.marks_blocks:
        return blocks.ranked_pairs
    if blocks.mask.real is not None:
        hidden = hidden | ~blocks.mask.real[:, None, None, -1:]
    return (~hidden).sum(dtype=torch.float64) / choices


def _rows(x: Tensor, readers: int, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """View x [batch, kv heads, n, d] as consecutive tokens [tokens, d]; also return the index at
    which each reader's kv head begins [batch, readers]."""
    batch, heads, n, d = x.shape
    if x.stride()[2:] != (d, 1) or x.stride(0) % d or x.stride(1) % d:
        x = x.contiguous()
    row, head = x.stride(0) // d, x.stride(1) // d
    begins = [b * row + i * heads // readers * head for b in range(batch) for i in range(readers)]
    tokens = x.as_strided(((batch - 1) * row + (heads - 1) * head + n, d), (d, 1))
    return tokens, blocks.constant(*begins, shape=(batch, readers))


def _windows(tokens: Tensor, size: int) -> Tensor:
    """View all runs of `size` consecutive tokens of [tokens, d]: [tokens - size + 1, size * d].

    index_select then copies each run in one piece.
    """
    n, d = tokens.shape
    return tokens.as_strided((n - size + 1, size * d), (d, 1))


def _as_mask(chosen: Tensor, blocks: Blocks) -> Tensor:
    """Convert block numbers [batch, rows, k], -1 for none, to a mask [batch, rows, blocks]."""
    mask = chosen.new_zeros(*chosen.shape[:2], blocks.count + 1, dtype=torch.bool)
    return mask.scatter_(2, chosen.remainder(blocks.count + 1), True)[..., :-1]


def _mask(kept: Tensor, index: Tensor, row: int, blocks: Blocks) -> Tensor:
    """Mask of the queries of some tiles over the tokens of the blocks that they gathered.

    kept [batch * choices, tiles, tile, blocks]: each row's choice; index [batch * choices, tiles,
    k]: the blocks gathered; row: the first row of the first tile. Returns [batch * choices, tiles,
    tile * size, k * size].
    """
    size, (batch, tiles, tile, _) = blocks.size, kept.shape
    device = kept.device
    rows = torch.arange(batch, device=device) * len(blocks.begin) // batch
    kept = kept.gather(3, index[:, :, None].expand(-1, -1, tile, -1))
    numbers = torch.arange(row, row + tiles * tile, device=device).view(tiles, tile)
    numbers = numbers + blocks.constant(*blocks.begin)[rows, None, None]
    token = blocks.token
    if blocks.mask.is_causal:
        earlier = index[:, :, None] < numbers[..., None]
        allowed = earlier[..., None, :, None] | (token <= token[:, None])[:, None]
    else:
        first, rows = (x.view(-1, *[1] * 5) for x in (blocks.first[rows], rows))
        queries = first + numbers[..., None, None, None] * size + token[:, None, None]
        keys = first + index[:, :, None, None, :, None] * size + token
        allowed = blocks.mask.at(rows, queries.clamp_max(blocks.mask.total - 1), keys)
    allowed = allowed & kept[:, :, :, None, :, None]
    return allowed.view(batch, tiles, tile * size, -1)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    terms: SoftmaxTerms,
    sinks: Tensor | None,
) -> Tensor:
    """Masked attention of query [b, kv heads, group * t, d], with mask [b, 1 or kv heads, t, k] and
    sinks [b, kv heads, group]."""
    t = mask.shape[2]
    group = query.shape[2] // t
    if group > 1 and t > 1:
        mask = mask.repeat(1, 1, group, 1)
    if terms.softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=terms.dropout, scale=terms.scaling
        )
    scores = (query.float() * terms.scaling) @ key.float().transpose(-1, -2)
    weights = _softmax(scores, ~mask, terms, sinks)
    return (weights @ value.float()).to(value.dtype)


def _softmax(scores: Tensor, hidden: Tensor, terms: SoftmaxTerms, sinks: Tensor | None) -> Tensor:
    """Attention weights from scaled q k^T [b, kv heads, group * t, k]; see `_attention`."""
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    if sinks is None:
        return functional.dropout(scores.softmax(-1), terms.dropout)
    sinks = sinks.float().repeat_interleave(scores.shape[2] // sinks.shape[2], -1)
    weights = torch.cat([scores, sinks[..., None]], -1).softmax(-1)[..., :-1]
    return functional.dropout(weights, terms.dropout)
