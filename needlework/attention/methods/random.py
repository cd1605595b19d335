"""Random blocks: a lower bound that any method should beat at the same density."""

from typing import TypeVar

from torch import Tensor

from needlework.attention.base import Forward, RankedSelector
from needlework.attention.layers import LayerShape
from needlework.config.attention.random import Random

X = TypeVar("X", int, Tensor)


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
        rows = _mix(queries + _mix(_mix(self.system.seed) + layer))[..., None]
        columns = forward.shared.get("columns")
        if columns is None:
            columns = forward.shared["columns"] = _mix(blocks.numbers)
        return (_mix(rows + columns) >> 8) / 2**24

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        pass  # no state

    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        return 0

    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        return 0


def _mix(x: X) -> X:
    """MurmurHash3's 32-bit finaliser (Appleby, 2011) of x mod 2^32, int64 in 0..2^32 - 1."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
