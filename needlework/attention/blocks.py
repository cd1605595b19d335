"""Block-sparse attention: how tokens fall into blocks, and which blocks a row keeps.

Blocks are counted from the first real token of each batch row, so left padding does not shift
them. The rows of a forward are the blocks of its queries; the first row may have begun in an
earlier forward, and the last may be incomplete.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from needlework.attention.masks import LazyMask
from needlework.config.attention.base import BlockSparse

T = TypeVar("T")

SORTED_AT_ONCE = 2**22
"""Most scores ranked together, unless one choice has more."""


class Blocks:
    """The blocks of one forward, the same for every layer.

    `rows` blocks of queries, starting at block `begin[b]` of batch row b; `count` blocks of keys.
    If padding differs between batch rows, some rows and blocks are empty.
    """

    most_marked: int | None = None
    """Most blocks that a row of a system that marks blocks keeps; None: the scores decide."""
    has_same_choice = False
    """Whether all layers choose the same blocks."""

    def __init__(self, mask: LazyMask, system: BlockSparse, device: torch.device):
        self.mask, self.system, self.device = mask, system, device
        self.marks_blocks = system.marks_blocks
        """Whether scores of +-inf keep or drop blocks in this forward; otherwise rank decides."""
        self.size = size = system.block_size
        self.begin = [max(0, mask.start - first) // size for first in mask.first]
        ends = [-(-max(0, mask.total - first) // size) for first in mask.first]
        self.rows = max(1, *[end - begin for begin, end in zip(self.begin, ends, strict=True)])
        self.count = max(self.begin) + self.rows
        self._constants: dict[tuple, Tensor] = {}
        self._of_choice: dict[str, Any] = {}

    def constant(self, *numbers: int, shape: tuple[int, ...] = (-1,)) -> Tensor:
        """Numbers on the device, int64, copied there once per forward.

        A copy in each layer would make a GPU wait.
        """
        if numbers not in self._constants:
            self._constants[numbers] = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return self._constants[numbers].view(shape)

    def of_choice(self, name: str, compute: Callable[[], T]) -> T:
        """What follows from a layer's choice: computed once if all layers choose the same."""
        if not self.has_same_choice:
            return compute()
        if name not in self._of_choice:
            self._of_choice[name] = compute()
        return self._of_choice[name]

    @property
    def query_starts(self) -> list[int]:
        """Offset of the first row of blocks from the first new token, per batch row."""
        return [
            first + begin * self.size - self.mask.start
            for first, begin in zip(self.mask.first, self.begin, strict=True)
        ]

    @cached_property
    def first(self) -> Tensor:
        """Position of the first real token of each batch row [batch], int64."""
        return torch.tensor(self.mask.first, device=self.device)

    @cached_property
    def token(self) -> Tensor:
        """Positions within a block, 0 .. size - 1, int64."""
        return torch.arange(self.size, device=self.device)

    @cached_property
    def number(self) -> Tensor:
        """Block number of each row [batch, rows], int64."""
        begin = torch.tensor(self.begin, device=self.device)
        return begin[:, None] + torch.arange(self.rows, device=self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """Numbers of all blocks, 0 .. count - 1, int64."""
        return torch.arange(self.count, device=self.device)

    @cached_property
    def has_future(self) -> bool:
        """Whether any row has a block after it."""
        return self.rows > 1 or len(set(self.begin)) > 1

    @cached_property
    def future(self) -> Tensor:
        """True for blocks after the row [batch, rows, blocks]."""
        return self.numbers > self.number[..., None]

    @cached_property
    def own(self) -> Tensor:
        """True for the row's own block [batch, rows, blocks]."""
        return self.numbers == self.number[..., None]

    @cached_property
    def kept(self) -> Tensor:
        """Number of blocks that each row keeps [batch, rows, 1], int64."""
        return torch.tensor(self._kept, device=self.device)[..., None]

    @cached_property
    def _kept(self) -> list[list[int]]:
        return [
            [self.system.kept_blocks(begin + row) for row in range(self.rows)]
            for begin in self.begin
        ]

    @cached_property
    def slots(self) -> int:
        """Largest number of blocks that any row keeps."""
        return self.system.kept_blocks(self.count - 1)

    @cached_property
    def has_empty(self) -> bool:
        """Whether any row has unused slots."""
        if self.marks_blocks:
            return True
        return any(kept < self.slots for row in self._kept for kept in row)

    @cached_property
    def is_empty(self) -> Tensor:
        """True for slots that a row does not use [batch, rows, slots]."""
        return torch.arange(self.slots, device=self.device) >= self.kept

    @cached_property
    def is_new(self) -> Tensor:
        """True for tokens that are queries of this forward [batch, rows, size]."""
        new = torch.ones(
            self.mask.batch_size, 1, self.mask.length, 1, dtype=torch.bool, device=self.device
        )
        if self.mask.real is not None:
            new = self.mask.real[:, None, self.mask.start :, None]
        return self.of_queries(new)[:, 0, ..., 0]

    @cached_property
    def own_pairs(self) -> Tensor:
        """(query, key) pairs of each row's new tokens with its own block [batch, rows], int64."""
        return (self.is_new * (self.token + 1)).sum(-1)

    @cached_property
    def ranked_pairs(self) -> Tensor:
        """`causal_pairs` of any choice by rank alone (0-dim float64)."""
        earlier = (self.kept[..., 0] - 1) * self.is_new.sum(-1) * self.size
        return (earlier + self.own_pairs).sum().double()

    @cached_property
    def fixed(self) -> tuple[Tensor, Tensor]:
        """The row's own block and those after it [batch, 1, rows, blocks]; which, and their scores:
        +inf and -inf, float32."""
        own = self.own[:, None]
        is_fixed = own | self.future[:, None] if self.has_future else own
        return is_fixed, torch.where(own, torch.inf, -torch.inf)

    @cached_property
    def last(self) -> list[int]:
        """Last row that holds a token, per batch row; 0 if none does."""
        blocks = [-(-(self.mask.total - first) // self.size) for first in self.mask.first]
        return [max(0, n - 1 - b) for n, b in zip(blocks, self.begin, strict=True)]

    @cached_property
    def is_full(self) -> list[bool]:
        """Whether the last block is complete, per batch row."""
        seen = [self.mask.total - first for first in self.mask.first]
        return [n > 0 and n % self.size == 0 for n in seen]

    @cached_property
    def is_earlier(self) -> Tensor:
        """1 for tokens of the first row from earlier forwards [batch, 1, size, 1]."""
        counts = [max(0, self.mask.start - first) % self.size for first in self.mask.first]
        before = torch.tensor(counts, device=self.device)
        return (self.token < before[:, None]).float()[:, None, :, None]

    @cached_property
    def is_seen(self) -> Tensor:
        """True for the real tokens of each row's block so far [batch, 1, rows, size, 1]."""
        real = self.mask.real
        if real is None:
            real = torch.ones(
                self.mask.batch_size, self.mask.total, dtype=torch.bool, device=self.device
            )
        return self._keys_of_rows(real[:, None, :, None])

    @cached_property
    def seen(self) -> Tensor:
        """Real tokens of each row's block so far, at least 1 [batch, 1, rows, 1], float32."""
        return self.is_seen.float().sum(3).clamp_min(1)

    def keys_of_rows(self, x: Tensor) -> Tensor:
        """Like of_keys, for the rows' own blocks only: [batch, heads, rows, size, d]."""
        if self.mask.real is not None and not self.mask.is_causal:
            x = x * self.mask.real[:, None, :, None]
        return self._keys_of_rows(x)

    def key_sums_of_rows(self, x: Tensor) -> Tensor:
        """keys_of_rows summed over each block: [batch, heads, rows, d]."""
        if self.rows > 1 or not self.mask.is_causal:
            return self.keys_of_rows(x).float().sum(3)
        starts = [
            first + begin * self.size
            for first, begin in zip(self.mask.first, self.begin, strict=True)
        ]
        # Decode runs this in every layer, so avoid padding and copies.
        if len(set(starts)) == 1:
            return x[:, :, starts[0] :].float().sum(2, keepdim=True)
        sums = [x[b, :, start:].float().sum(1, keepdim=True) for b, start in enumerate(starts)]
        return torch.stack(sums)

    def _keys_of_rows(self, x: Tensor) -> Tensor:
        starts = [
            first + begin * self.size
            for first, begin in zip(self.mask.first, self.begin, strict=True)
        ]
        return shift(x, starts, self.rows * self.size).unflatten(2, (-1, self.size))

    def of_queries(self, x: Tensor) -> Tensor:
        """[batch, heads, new tokens, d] -> [batch, heads, rows, size, d], 0 at empty slots."""
        if self.mask.real is not None and not self.mask.is_causal:
            x = x * self.mask.real[:, None, self.mask.start :, None]
        return shift(x, self.query_starts, self.rows * self.size).unflatten(2, (-1, self.size))

    def of_keys(self, x: Tensor) -> Tensor:
        """[batch, heads, all tokens, d] -> [batch, heads, blocks, size, d], 0 at empty slots."""
        return shift(x, self.mask.first, self.count * self.size).unflatten(2, (-1, self.size))

    def tokens(self, x: Tensor) -> Tensor:
        """Inverse of of_queries: [batch, heads, rows, size, d] -> [batch, heads, new tokens, d]."""
        return shift(x.flatten(2, 3), [-start for start in self.query_starts], self.mask.length)


def shift(x: Tensor, starts: list[int], length: int) -> Tensor:
    """x[b, :, starts[b] : starts[b] + length] of x [batch, h, n, d], padded with 0 at both ends."""
    if len(set(starts)) > 1:
        parts = [shift(x[b : b + 1], [start], length) for b, start in enumerate(starts)]
        return torch.cat(parts)
    n, start = x.shape[2], starts[0]
    low, high = min(max(start, 0), n), min(max(start + length, 0), n)
    before = min(max(-start, 0), length) if high > low else 0
    x = x[:, :, low:high]
    after = length - before - x.shape[2]
    return functional.pad(x, (0, 0, before, after)) if before or after else x


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """torch.cat, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def choose(scores: Tensor, blocks: Blocks) -> Tensor:
    """Choose the blocks of each row: its own, and the earlier ones with the highest scores.

    Ties go to the earlier block. If the system marks blocks, a score of +inf keeps a block beyond
    the row's count, and -inf always drops it.

    Args:
        scores: [batch, rows, blocks], or one per head or kv head [batch, choices, rows, blocks].
        blocks: of the forward.

    Returns:
        Block numbers [batch, rows, k] or [batch, choices, rows, k], int64: the row's own in slot 0,
        -1 in unused slots.
    """
    if scores.ndim == 3:
        return blocks.of_choice("chosen", lambda: choose(scores[:, None], blocks)[:, 0])
    # A few choices at a time: ranking takes several times the memory of the scores.
    together = ranked_together(scores[:, 0].numel())
    parts = [_choose(part, blocks) for part in scores.split(together, 1)]
    if len(parts) == 1:
        return parts[0]
    slots = max(part.shape[-1] for part in parts)
    padded = (functional.pad(part, (0, slots - part.shape[-1]), value=-1) for part in parts)
    return torch.cat([*padded], 1)


def _choose(scores: Tensor, blocks: Blocks) -> Tensor:
    """`choose` for scores [batch, choices, rows, blocks]."""
    is_fixed, fixed = blocks.fixed
    if not blocks.marks_blocks:
        scores = torch.where(is_fixed, fixed, scores)
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : blocks.slots]
        return order.masked_fill(blocks.is_empty[:, None], -1) if blocks.has_empty else order
    # A forced block scores just below the row's own, which must come first.
    forced = torch.finfo(scores.dtype).max
    scores = torch.where(is_fixed, fixed, scores.clamp_max(forced))
    kept = torch.maximum(blocks.kept[:, None], (scores >= forced).sum(-1, keepdim=True))
    kept = torch.minimum(kept, (scores > -torch.inf).sum(-1, keepdim=True))
    most = blocks.most_marked
    slots = int(kept.max()) if most is None else min(most, blocks.count)
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :slots]
    return order.masked_fill(blocks.numbers[:slots] >= kept, -1)


def ranked_together(scores: int) -> int:
    """How many choices of `scores` scores to rank together."""
    return max(1, SORTED_AT_ONCE // scores)


def window_pairs(blocks: Blocks) -> Tensor:
    """Pairs of real tokens within the mask's window (0-dim float64)."""
    if blocks.mask.window is None:
        raise ValueError("mask: has no window")
    sinks, recent = blocks.mask.window
    seen = blocks.number[..., None] * blocks.size + blocks.token + 1
    kept = seen.clamp_max(recent) + (seen - recent).clamp(0, sinks)
    return (kept * blocks.is_new).sum().double()


def causal_pairs(chosen: Tensor, blocks: Blocks) -> Tensor:
    """Pairs of real tokens in the chosen blocks [batch, choices, rows, k] under the plain causal
    mask, averaged over choices (0-dim float64).

    Every block before the row's own is complete, so counting blocks is enough.
    """
    if not blocks.marks_blocks:
        return blocks.ranked_pairs
    earlier = ((chosen >= 0) & (chosen != blocks.number[:, None, :, None])).sum((1, -1)).double()
    earlier = earlier / chosen.shape[1] * blocks.is_new.sum(-1) * blocks.size
    return (earlier + blocks.own_pairs).sum()
