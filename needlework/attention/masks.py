"""A lazy attention mask: kept as a rule, evaluated only where somebody looks.

A full mask is n x n; block-sparse attention looks at a few blocks of it. Transformers asks the
registered mask function for a mask before the first layer; this one returns the rule itself.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    prepare_padding_mask,
)


class LazyMask:
    """Who may attend to whom in one forward, as transformers described it.

    `start` tokens lie in the cache, `length` tokens are new, `total` is their sum; positions are
    absolute, padding included.
    """

    def __init__(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: int = 0,
        kv_offset: int = 0,
        mask_function: Callable = causal_mask_function,
        attention_mask: Tensor | None = None,
        **arguments,
    ):
        self._arguments = {
            "batch_size": batch_size,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "mask_function": mask_function,
            "attention_mask": attention_mask,
            **arguments,
        }
        if kv_offset + kv_length > q_offset + q_length:
            raise ValueError(
                f"past_key_values: has room for {kv_offset + kv_length} tokens, of which "
                f"{int(q_offset) + q_length} have come; give no cache_implementation, or a "
                "DynamicCache, and an attention_mask of the tokens so far"
            )
        if attention_mask is not None and len(attention_mask) != batch_size:
            raise ValueError(
                f"attention_mask: has {len(attention_mask)} rows, the input {batch_size}; give "
                "one for each row of the input"
            )
        self._stock: dict[str, Tensor | None] = {}
        self.batch_size = batch_size
        self.start = q_offset
        self.length = q_length
        self.window: tuple[int, int] | None = None
        """Set where the mask is causal but for this: (sinks, recent), as `windowed` has them."""

    @property
    def total(self) -> int:
        return self.start + self.length

    @cached_property
    def real(self) -> Tensor | None:
        """Real tokens [batch, total], bool; None when there is no padding."""
        padding = self._arguments["attention_mask"]
        if padding is None:
            return None
        real = prepare_padding_mask(padding, self.total, 0)[:, : self.total].bool()
        return None if bool(real.all()) else real

    @cached_property
    def first(self) -> list[int]:
        """Position of the first real token of each row; `total` for a row that has none yet."""
        if self.real is None:
            return [0] * self.batch_size
        position = self.real.int().argmax(-1)
        return torch.where(self.real.any(-1), position, self.total).tolist()

    @cached_property
    def end(self) -> list[int]:
        """Position after the last real token of each row; `total` for a row that has none yet."""
        if self.real is None:
            return [self.total] * self.batch_size
        return (self.total - self.real.flip(-1).int().argmax(-1)).tolist()

    @cached_property
    def is_causal(self) -> bool:
        """Plain causal with padding on the left at most: then block layout alone tells the mask."""
        if self._arguments["mask_function"] is not causal_mask_function:
            return False
        return self.real is None or bool((self.real[:, :-1] <= self.real[:, 1:]).all())

    def at(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """The mask at the given rows of the batch, query and key positions (int64, broadcast).

        Key positions outside the cache are masked.
        """
        inside = (keys >= 0) & (keys < self.total)
        keys = keys.clamp(0, self.total - 1)
        allowed = self._arguments["mask_function"](rows, torch.zeros_like(rows), queries, keys)
        if self.real is not None:
            allowed = allowed & self.real[rows, keys]
        return allowed & inside

    def windowed(self, sinks: int, recent: int, first: Tensor) -> "LazyMask":
        """This mask, where the key also is one of the first `sinks` tokens, counted from position
        `first` [batch] of each row, or one of the last `recent` up to the query."""

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key < first[row] + sinks) | (query - key < recent)

        both = and_masks(self._arguments["mask_function"], sees)
        mask = LazyMask(**{**self._arguments, "mask_function": both})
        mask.window = (sinks, recent) if self.is_causal else None
        return mask

    @cached_property
    def causal_pairs(self) -> int:
        """(query, key) pairs of real tokens, key not after query, queries among the new tokens."""
        if self.real is None:
            return self.batch_size * (_triangle(self.total) - _triangle(self.start))
        seen = self.real.cumsum(-1) * self.real
        return int(seen[:, self.start :].sum())

    def stock(self, implementation: str) -> Tensor | None:
        """The mask as transformers makes it for one of its own attention implementations."""
        if implementation not in self._stock:
            make = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
            self._stock[implementation] = make(**self._arguments)
        return self._stock[implementation]


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
