"""Blocks kept at random: what any choice of blocks has to beat at the same density."""

import torch
from torch import Tensor

from needlework.attention.apply import Forward
from needlework.config.attention import Random


class Selector:
    """A score is a hash of (seed, layer, query, block): no state, and nothing else moves it.

    Query and block are counted from the first real token, so neither the rest of the batch nor
    the chunks of a prefill change the draw. A row of blocks draws as its first token; a token that
    decodes draws for itself.
    """

    def __init__(self, system: Random):
        self.system = system

    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor:
        """Uniform scores in 0..1 [batch, rows, blocks], float32."""
        blocks = forward.blocks
        draws = blocks.number * blocks.size
        if forward.is_decode:
            draws = (blocks.mask.start - blocks.first)[:, None]
        seed = _mix(_mix(torch.tensor(self.system.seed, device=query.device)) + layer)
        rows = _mix(seed + draws)[..., None]
        columns = torch.arange(blocks.count, device=query.device)
        return (_mix(rows + _mix(columns)) >> 8) / 2**24


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser (Appleby, 2011) of x mod 2^32, int64 in 0..2^32 - 1."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
