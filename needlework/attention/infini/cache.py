"""The cache of an Infini model: its size does not depend on the length of the text."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

from needlework.attention.infini.memory import state_dtype
from needlework.attention.infini.segments import Segments


class InfiniCacheLayer(CacheLayerMixin):
    """One layer's memory, and the keys and values of its unfinished segment.

    keys [B, G, S, D], before RoPE, and values [B, G, S, Dv] are in the model's dtype; memory
    [B, G, D, Dv] and norm [B, G, D] in float32 or wider. All are allocated at the first token.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, segment_length: int):
        super().__init__()
        self.segment_length = segment_length
        self.columns = 0
        self.memory: Tensor | None = None
        self.norm: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, dim = key_states.shape
        value_dim = value_states.shape[-1]
        self.keys = key_states.new_zeros(rows, heads, self.segment_length, dim)
        self.values = value_states.new_zeros(rows, heads, self.segment_length, value_dim)
        dtype = state_dtype(key_states.dtype)
        self.memory = key_states.new_zeros(rows, heads, dim, value_dim, dtype=dtype)
        self.norm = key_states.new_zeros(rows, heads, dim, dtype=dtype)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # The attention function writes the state, because only it knows the segments.
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = self.memory = self.norm = None
        self.columns, self.is_initialized = 0, False

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            rows = indices.to(self.device)
            for name in ("keys", "values", "memory", "norm"):
                setattr(self, name, getattr(self, name)[rows])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)


class InfiniCache(Cache):
    """The cache of an Infini model: one `InfiniCacheLayer` per layer, and each row's token count.

    Sliding-window layers keep the tokens of their window, as in their own family.

    Args:
        config: of the model.
        offset: int64 [B], tokens by which each row's first segment is shortened; None: the first
            forward decides.
    """

    def __init__(self, config: PreTrainedConfig, offset: Tensor | None = None):
        segment_length = config.infini["segment_length"]
        super().__init__(
            layers=[
                InfiniCacheLayer(segment_length)
                if kind == "full_attention"
                else DynamicSlidingWindowLayer(**settings)
                for kind, settings in zip(*get_layer_types_and_kwargs(config), strict=True)
            ]
        )
        self.offset = offset
        self.seen: Tensor | None = None
        """int64 [B], real tokens in the cache."""

    def store(self, layer_idx: int, keys: Tensor, values: Tensor, segments: Segments) -> None:
        """Store each row's unfinished segment of keys, values [B, N, G, S, D]."""
        layer = self.layers[layer_idx]
        rows = torch.arange(len(keys), device=keys.device)
        unfinished = segments.finished.clamp_max(segments.number - 1)
        layer.keys = keys.detach()[rows, unfinished]
        layer.values = values.detach()[rows, unfinished]
        layer.columns += segments.slot.shape[1]

    def _select_rows(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.batch_select_indices(rows)
        for name in ("offset", "seen"):
            counts = getattr(self, name)
            if counts is not None:
                setattr(self, name, counts[rows.to(counts.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        counts = self.offset if self.seen is None else self.seen
        if counts is not None:
            self._select_rows(torch.arange(len(counts)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "past_key_values: Infini-attention cannot remove tokens from its memory; generate "
            "without assistant_model, prompt_lookup_num_tokens and other speculative decoding"
        )

    def reset(self) -> None:
        super().reset()
        self.seen = self.offset = None
