"""StreamingLLM (Xiao et al., 2023): every token sees the first tokens and the most recent ones.

Blocks with any such token are kept and a mask hides their other tokens, so the window is exact.
"""

from functools import cached_property

import torch
from torch import Tensor

from needlework.attention.base import Forward, Selector
from needlework.attention.blocks import Blocks
from needlework.attention.layers import LayerShape, count_causal_pairs
from needlework.config.attention.window import Window


class Method(Selector[Window]):
    """Marks the blocks that hold sinks or recent tokens, the same in every layer. No state."""

    chooses_by_token = True

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """+inf for blocks with a token that the row sees, -inf for others."""
        if not isinstance(forward.blocks, WindowBlocks):
            forward.blocks = WindowBlocks(forward.blocks, self.system)
        return forward.blocks.scores

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        pass  # no state

    def sparse_prefill_density(self, tokens: int) -> float:
        pairs = count_causal_pairs(tokens, self.system.recent_tokens)
        sinks = min(self.system.sink_tokens, tokens)
        pairs += max(0, tokens - self.system.recent_tokens) * sinks
        return min(1.0, pairs / count_causal_pairs(tokens))

    def sparse_decode_density(self, tokens: int) -> float:
        return min(1.0, (self.system.sink_tokens + self.system.recent_tokens) / tokens)

    def state_bytes(self, layer: LayerShape, tokens: int) -> int:
        return 0

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        return 0

    def selection_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        return 0


class WindowBlocks(Blocks):
    """The blocks of a forward, with a mask that hides tokens neither sinks nor recent."""

    has_same_choice = True

    def __init__(self, blocks: Blocks, window: Window):
        self.sink_tokens, self.recent_tokens = window.sink_tokens, window.recent_tokens
        mask = blocks.mask.windowed(self.sink_tokens, self.recent_tokens, blocks.first)
        super().__init__(mask, window, blocks.device)
        sinks, recent = -(-self.sink_tokens // self.size), -(-(self.recent_tokens - 1) // self.size)
        self.most_marked = sinks + recent + 1

    @cached_property
    def scores(self) -> Tensor:
        """+inf and -inf [batch, rows, blocks], float32."""
        start = torch.arange(self.count, device=self.device) * self.size
        # The first query of a row sees the furthest back.
        query = (self.number * self.size).maximum(self.mask.start - self.first[:, None])
        recent = start + self.size > query[..., None] - self.recent_tokens + 1
        sees = recent | (start < self.sink_tokens)
        return torch.where(sees, torch.inf, -torch.inf)
