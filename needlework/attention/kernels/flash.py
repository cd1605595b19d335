"""Block-sparse attention on CPUs with torch's flash kernel, without masks of tokens.

A row's own block needs the causal mask, which the kernel knows; its earlier blocks need none. Both
parts are merged by their logarithms of sums (Dao et al., 2022). Rows that keep equally many blocks
share a call, and all calls copy their blocks into the same memory: fresh memory for each costs
more than the copy.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from needlework.attention.blocks import Blocks, causal_pairs
from needlework.attention.kernels.gather import SoftmaxTerms

GATHERED_ELEMENTS = 2**18
"""Most elements of keys copied together, unless one row has more."""
MIN_QUERIES = 32
"""Fewest queries of a row that share keys, from which products are large enough."""


def can_flash(
    query: Tensor, key: Tensor, value: Tensor, choices: int, blocks: Blocks, terms: SoftmaxTerms
) -> bool:
    """Whether `attend_flash` supports this call, with queries enough to be fast."""
    tensors = (query, key, value, *([] if terms.sinks is None else [terms.sinks]))
    group = query.shape[1] // max(key.shape[1], choices)
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1]
        and group * blocks.size >= MIN_QUERIES
        and blocks.mask.is_causal
        and terms.dropout == 0
        and terms.softcap is None
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )


def attend_flash(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> tuple[Tensor, Tensor]:
    """`attend` on a CPU under a causal mask; see there for shapes. Computes in float32 where the
    CPU has no faster products of the dtype."""
    heads, kv_heads, choices = query.shape[1], key.shape[1], chosen.shape[1]
    size, d = blocks.size, query.shape[-1]
    dtype = query.dtype if has_fast_matmul(query.dtype) else torch.float32
    # Each reader is the heads that share keys and a choice.
    readers = max(kv_heads, choices)
    group = heads // readers
    queries = blocks.of_queries(query)
    keys, values = (blocks.of_keys(x).flatten(3) for x in (key, value))
    together = max(1, GATHERED_ELEMENTS // (size * d))
    key_buffer, value_buffer = (
        _Buffer(x, max(together, chosen.shape[-1]), dtype) for x in (keys, values)
    )
    out = queries.new_empty(queries.shape)
    for b, begin in enumerate(blocks.begin):
        plans = [_Plan.of(one, blocks.number[b]) for one in chosen[b]]
        for reader in range(readers):
            plan = plans[reader * choices // readers]
            its_heads = slice(reader * group, (reader + 1) * group)
            head = reader * kv_heads // readers
            q = queries[b, its_heads].transpose(0, 1)[plan.rows].to(dtype)
            k, v = (x[b, head] for x in (keys, values))
            number = plan.rows + begin
            own_k, own_v = (x[number].to(dtype).view(-1, 1, size, d).expand_as(q) for x in (k, v))
            attended, total = _flash(q, own_k, own_v, terms, is_causal=True)
            if terms.sinks is not None:
                without = total
                total = torch.logaddexp(total, terms.sinks[its_heads].float()[:, None])
                attended *= (without - total).exp()[..., None]
            for start, end, index in plan.parts(together):
                rows = end - start
                earlier, earlier_total = _flash(
                    q[start:end].reshape(rows, 1, group * size, d),
                    key_buffer.copy(k, index).view(rows, 1, -1, d),
                    value_buffer.copy(v, index).view(rows, 1, -1, d),
                    terms,
                )
                weight = (earlier_total.view(rows, group, size) - total[start:end]).sigmoid()
                attended[start:end].lerp_(
                    earlier.view(rows, group, size, d), weight[..., None].to(dtype)
                )
            out[b, its_heads].transpose(0, 1)[plan.rows] = attended.to(out.dtype)
    return blocks.tokens(out), causal_pairs(chosen, blocks)


def has_fast_matmul(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies matrices of this dtype at least as fast as float32."""
    required = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
    return dtype not in required or torch.cpu.get_capabilities().get(required[dtype], False)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, terms: SoftmaxTerms, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention [b, heads, n, d], and the logarithms of the softmax's sums [b, heads, n]."""
    # scaled_dot_product_attention calls this, but returns no sums.
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=is_causal, scale=terms.scaling
    )


class _Plan(NamedTuple):
    """What each row of one choice reads besides its own block, in order of the number of blocks."""

    rows: Tensor
    """Numbers of the rows in this order [rows]."""
    earlier: Tensor
    """Numbers of their earlier blocks [rows, k], the last `counts` of each row."""
    counts: list[int]

    @classmethod
    def of(cls, chosen: Tensor, own: Tensor) -> "_Plan":
        """From chosen blocks [rows, k], -1 for none, and each row's own [rows]."""
        earlier = chosen.masked_fill(chosen == own[:, None], -1).sort(-1).values
        counts, rows = (earlier >= 0).sum(-1).sort(stable=True)
        return cls(rows, earlier[rows], counts.tolist())

    def parts(self, blocks: int) -> Iterator[tuple[int, int, Tensor]]:
        """Runs of rows with equally many blocks, of at most `blocks` blocks together if one row has
        no more: their begin and end in `rows`, and the numbers of all their blocks."""
        start = bisect_right(self.counts, 0)
        while start < len(self.counts):
            count = self.counts[start]
            end = bisect_right(
                self.counts, count, hi=min(len(self.counts), start + max(1, blocks // count))
            )
            yield start, end, self.earlier[start:end, -count:].flatten()
            start = end


class _Buffer:
    """Memory for copies of blocks [blocks, size * d], in the dtype of products."""

    def __init__(self, blocks: Tensor, count: int, dtype: torch.dtype):
        self._copied = blocks.new_empty(count, blocks.shape[-1])
        is_same = dtype == blocks.dtype
        self._converted = self._copied if is_same else self._copied.to(dtype)

    def copy(self, blocks: Tensor, index: Tensor) -> Tensor:
        copied, converted = (x[: len(index)] for x in (self._copied, self._converted))
        torch.index_select(blocks, 0, index, out=copied)
        return copied if self._converted is self._copied else converted.copy_(copied)
