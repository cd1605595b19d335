"""StreamingLLM (Xiao et al., 2023): every token sees the first tokens and the most recent ones.

Blocks with any such token are kept, and a mask leaves out their other tokens: the window is exact.
"""

from functools import cached_property

import torch
from torch import Tensor

from needlework.attention.apply import Forward
from needlework.attention.blocks import Blocks
from needlework.config.attention import Window


class Selector:
    """Marks the blocks that hold sinks or recent tokens, alike in every layer. No state."""

    def __init__(self, system: Window):
        self.system = system

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """+inf for blocks with a token in sight of the row, -inf for others."""
        if not isinstance(forward.blocks, WindowBlocks):
            forward.blocks = WindowBlocks(forward.blocks)
        return forward.blocks.scores


class WindowBlocks(Blocks):
    """The blocks of a forward, whose mask hides what is neither a sink nor recent."""

    def __init__(self, blocks: Blocks):
        system = blocks.system
        mask = blocks.mask.windowed(system.sink_tokens, system.recent_tokens, blocks.first)
        super().__init__(mask, system, blocks.device)

    @cached_property
    def scores(self) -> Tensor:
        """+inf and -inf [batch, rows, blocks], float32."""
        start = torch.arange(self.count, device=self.device) * self.size
        # The earliest query of a row sees the furthest back.
        query = (self.number * self.size).maximum(self.mask.start - self.first[:, None])
        recent = start + self.size > query[..., None] - self.system.recent_tokens + 1
        sees = recent | (start < self.system.sink_tokens)
        return torch.where(sees, torch.inf, -torch.inf)
