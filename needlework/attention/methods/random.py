"""Random blocks: a lower bound that any method should beat at the same density."""

import torch
from torch import Tensor

from needlework.attention.base import Forward, RankedSelector
from needlework.attention.layers import LayerShape
from needlework.config.attention import Random


class Method(RankedSelector[Random]):
    """Scores are a hash of (seed, layer, query, block), without state.

    Query and block are counted from the first real token, so neither the other rows of the batch
    nor the chunks of a prefill change the draw. The query of a row of blocks is its first token; a
    decoded token is its own query.
    """

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Uniform scores in 0..1 [batch, rows, blocks], float32."""
        blocks = forward.blocks
        queries = blocks.number * blocks.size
        if forward.is_decode:
            queries = (blocks.mask.start - blocks.first)[:, None]
        seed = _mix(_mix(torch.tensor(self.system.seed, device=query.device)) + layer)
        rows = _mix(seed + queries)[..., None]
        columns = torch.arange(blocks.count, device=query.device)
        return (_mix(rows + _mix(columns)) >> 8) / 2**24

    def state_bytes(self, layer: LayerShape, tokens: int) -> int:
        return 0

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        return 0


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser (Appleby, 2011) of x mod 2^32, int64 in 0..2^32 - 1."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
