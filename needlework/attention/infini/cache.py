"""What Infini-attention carries from one forward pass to the next: constant bytes at any length."""

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


class InfiniLayer(CacheLayerMixin):
    """One layer's memory and the keys and values of its unfinished segment.

    keys [B, G, S, D] are from before RoPE, values are [B, G, S, Dv], both in the model's dtype;
    memory [B, G, D, Dv] and norm [B, G, D] are float32. All are allocated whole at the first token.
    """

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

    def update(self, key_states, value_states, *args, **kwargs):
        # The attention function itself writes the state: it alone knows the segments.
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
            rows = indices.to(self.keys.device)
            self.keys, self.values = self.keys[rows], self.values[rows]
            self.memory, self.norm = self.memory[rows], self.norm[rows]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)


class InfiniCache(Cache):
    """The cache of an Infini model: a layer state each, and the tokens seen by each row.

    Layers that slide keep the window's tokens, as in their own family.

    Args:
        config: of the model.
        offset: int64 [B], tokens by which each row's first segment is shortened; None leaves it to
            the first forward pass.
    """

    def __init__(self, config: PreTrainedConfig, offset: Tensor | None = None):
        segment_length = config.infini["segment_length"]
        super().__init__(
            layers=[
                InfiniLayer(segment_length)
                if kind == "full_attention"
                else DynamicSlidingWindowLayer(**arguments)
                for kind, arguments in zip(*get_layer_types_and_kwargs(config), strict=True)
            ]
        )
        self.offset = offset
        self.seen: Tensor | None = None

    def store(self, layer_idx: int, keys: Tensor, values: Tensor, segments: Segments) -> None:
        """Keep each row's unfinished segment out of keys, values [B, N, G, S, D]."""
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
        self._select_rows(torch.arange(len(self.seen)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "past_key_values: Infini-attention cannot forget tokens again; generate without "
            "assistant_model, prompt_lookup_num_tokens and whatever else takes tokens back"
        )

    def reset(self) -> None:
        super().reset()
        self.seen = self.offset = None
