"""A lazy attention mask: a rule, evaluated only where it is needed.

A full mask has n x n entries, of which block-sparse attention needs a few blocks. transformers
calls the registered mask function before the first layer; LazyMask returns the rule instead.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    prepare_padding_mask,
)


class LazyMask:
    """Which queries may attend to which keys in one forward; arguments as transformers passes them.

    `start` tokens are in the cache, `length` tokens are new, and `total` is their sum; positions
    are absolute, padding included.
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
        **mask_arguments: Any,
    ):
        # A static cache passes a tensor, which it increments within the forward.
        q_offset = int(q_offset)
        self._arguments: dict[str, Any] = {
            "batch_size": batch_size,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "mask_function": mask_function,
            "attention_mask": attention_mask,
            **mask_arguments,
        }
        if attention_mask is not None and len(attention_mask) != batch_size:
            raise ValueError(
                f"attention_mask: has {len(attention_mask)} rows, but the input has {batch_size}; "
                "pass one row for each row of the input"
            )
        self._stock: dict[str, Tensor | None] = {}
        self.batch_size = batch_size
        self.start = q_offset
        self.length = q_length
        self.window: tuple[int, int] | None = None
        """(sinks, recent) of `windowed`, if the mask is causal apart from them."""

    @classmethod
    def __torch_function__(cls, *_: object) -> NoReturn:
        # torch calls this where another attention function gets the mask as if it were a tensor.
        raise ValueError(
            "attention_mask: belongs to an attention system that is removed; with gradient "
            "checkpointing, call backward() before the handle's remove()"
        )

    @property
    def total(self) -> int:
        return self.start + self.length

    @cached_property
    def real(self) -> Tensor | None:
        """Which tokens are real [batch, total], bool; None: there is no padding."""
        padding = self._arguments["attention_mask"]
        if padding is None:
            return None
        real = prepare_padding_mask(padding, self.total, 0)[:, : self.total].bool()
        return None if bool(real.all()) else real

    @cached_property
    def first(self) -> list[int]:
        """Position of the first real token of each row; `total` for a row without one."""
        if self.real is None:
            return [0] * self.batch_size
        position = self.real.int().argmax(-1)
        return torch.where(self.real.any(-1), position, self.total).tolist()

    @cached_property
    def end(self) -> list[int]:
        """Position after the last real token of each row; `total` for a row without one."""
        if self.real is None:
            return [self.total] * self.batch_size
        return (self.total - self.real.flip(-1).int().argmax(-1)).tolist()

    @cached_property
    def is_causal(self) -> bool:
        """Whether it is causal with at most left padding, so that block numbers determine it."""
        if self._arguments["mask_function"] is not causal_mask_function:
            return False
        return self.real is None or bool((self.real[:, :-1] <= self.real[:, 1:]).all())

    def at(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Evaluate the mask at rows of the batch, query and key positions (int64, broadcast).

        Key positions outside the cache are masked.
        """
        inside = (keys >= 0) & (keys < self.total)
        keys = keys.clamp(0, self.total - 1)
        allowed = self._arguments["mask_function"](rows, torch.zeros_like(rows), queries, keys)
        if self.real is not None:
            allowed = allowed & self.real[rows, keys]
        return allowed & inside

    def windowed(self, sinks: int, recent: int, first: Tensor) -> "LazyMask":
        """Restrict the mask to the first `sinks` keys after position `first` [batch] of each row
        and the last `recent` keys up to the query."""

        def in_window(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key < first[row] + sinks) | (query - key < recent)

        combined = and_masks(self._arguments["mask_function"], in_window)
        mask = LazyMask(**{**self._arguments, "mask_function": combined})
        mask.window = (sinks, recent) if self.is_causal else None
        return mask

    @cached_property
    def causal_pairs(self) -> int:
        """Number of causal (query, key) pairs of real tokens with a new token as query."""
        if self.real is None:
            return self.batch_size * (_triangle(self.total) - _triangle(self.start))
        keys = self.real.cumsum(-1) * self.real
        return int(keys[:, self.start :].sum())

    def stock(self, implementation: str) -> Tensor | None:
        """The full mask, in the form that one of transformers' attention implementations needs."""
        if implementation not in self._stock:
            make = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
            self._stock[implementation] = make(**self._arguments)
        return self._stock[implementation]


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
