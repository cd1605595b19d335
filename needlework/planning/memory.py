"""Bytes that an attention system keeps beside keys and values, and that it works in for a while.

n tokens in b = ceil(n / B) blocks of B; h query heads, g key/value heads, dimension d, as in the
systems' own modules, whose docstrings name each tensor. All of it is float32 but block numbers.
"""

import json
import math
from pathlib import Path

from needlework.config.attention import (
    Attention,
    BlockSparse,
    Infini,
    Oracle,
    Ranked,
    Seer,
    SketchWalk,
    XAttention,
)
from needlework.planning.shape import Layer, Shape

_F32, _I64 = 4, 8
_RANKING = 56
"""Bytes of a pair of blocks while blocks are ranked, measured."""


def sparse_layers(shape: Shape, system: Attention) -> list[Layer]:
    """The layers that `system` replaces."""
    first = system.dense_layers if isinstance(system, BlockSparse) else 0
    return [layer for layer in shape.layers[first:] if layer.is_full]


def state_bytes(shape: Shape, system: Attention | None, tokens: int, gate_dim: int = 0) -> int:
    """Bytes kept in the cache beside keys and values after `tokens` tokens, batch 1.

    Args:
        gate_dim: of SeerAttention's gates, for that system.
    """
    layers = [] if system is None else sparse_layers(shape, system)
    return sum(_layer_state(system, layer, tokens, gate_dim) for layer in layers)


def _layer_state(system: Attention, layer: Layer, tokens: int, gate_dim: int) -> int:
    heads, kv, d = layer.heads, layer.kv_heads, layer.key_dim
    size = getattr(system, "block_size", 1)
    blocks = -(-tokens // size)
    if isinstance(system, SketchWalk):
        return _walk_state(system, layer, tokens)
    if isinstance(system, Seer):
        pooled = 0 if system.skip_prefill else (heads if gate_dim == d else kv)
        pooled += 0 if system.skip_decode else kv
        last = kv * size * d + (0 if system.skip_prefill else heads * size * d)
        return _F32 * (pooled * blocks * gate_dim + last)
    if isinstance(system, XAttention) and not system.skip_decode:
        return _F32 * kv * blocks * (size // system.stride) * d
    return 0


def _walk_state(system: SketchWalk, layer: Layer, tokens: int) -> int:
    size, blocks = system.block_size, -(-tokens // system.block_size)
    heads, kv = (1, 1) if system.heads == "mean" else (layer.heads, layer.kv_heads)
    r = sketched_dim(system, layer.key_dim)
    numbers = kv * blocks * r * (2 if system.keys == "box" else 1) + heads * size * r
    found = _F32 * numbers
    if system.walk != "off" and system.walk_memory == "full":
        found += _F32 * blocks**2
    elif system.walk != "off":
        found += (_F32 + _I64) * blocks * kept_blocks(system, blocks)
    if system.decode_queries > 1:
        slots = system.decode_queries + size
        found += _F32 * heads * slots * r + _I64 * slots
    return found


def sketched_dim(system: SketchWalk, d: int) -> int:
    """Coordinates of the sketch: at most d padded to a power of two; d where there is none."""
    padded = 2 ** math.ceil(math.log2(d))
    return d if system.sketch_dim is None else min(system.sketch_dim, padded)


def kept_blocks(system: Ranked, blocks: int) -> int:
    """Most blocks that a row of `blocks` keeps by rank."""
    if isinstance(system, SketchWalk) and system.select == "quantile":
        return min(blocks, math.ceil((1 - system.quantile) * blocks) + 1)
    count = system.top_k_blocks
    if system.density is not None:
        count = math.ceil(system.density * blocks)
    return min(blocks, count)


def infini_cache_bytes(shape: Shape, system: Infini, tokens: int) -> int:
    """The cache of an Infini model, batch 1: the same at any length beyond a segment and a window.

    A full-attention layer holds keys and values of a segment of S tokens in the model's dtype, and
    in float32 (or wider) M [g, d, d_v] and z [g, d]. Layers that slide keep their window.
    """
    wide, found = max(_F32, shape.item_bytes), 0
    for layer in shape.layers:
        row = layer.kv_heads * (layer.key_dim + layer.value_dim) * shape.item_bytes
        if layer.is_full:
            found += system.segment_length * row
            found += wide * layer.kv_heads * layer.key_dim * (layer.value_dim + 1)
        else:
            found += min(tokens, (layer.window or tokens) - 1) * row
    return found


def workspace_bytes(
    shape: Shape, system: Attention | None, tokens: int, chunk: int | None = None
) -> int:
    """Most bytes that the prefill of one replaced layer makes beside the model's own tensors.

    Copies of queries, keys, values and outputs in blocks; for what ranks blocks, float32 queries
    and keys, and of each choice (a head's, where heads choose) b x b tables: scores, ranks, order.
    In chunks the queries, and the rows of tables, are those of a `chunk`.
    """
    layers = [] if system is None else sparse_layers(shape, system)
    if not layers:
        return 0
    layer = layers[0]
    new = min(tokens, chunk or tokens)
    queries, item = new * layer.heads * layer.key_dim, shape.item_bytes
    if isinstance(system, Infini):
        tokens = new  # of the others the memory stands for all
    keys = tokens * layer.kv_heads * (layer.key_dim + layer.value_dim)
    if isinstance(system, Infini):
        segments = tokens // system.segment_length + 2
        memories = segments * layer.kv_heads * layer.key_dim * (layer.value_dim + 1)
        return item * (2 * queries + 2 * keys) + _F32 * (3 * queries + keys + 2 * memories)
    size = getattr(system, "block_size", tokens)
    tiles = -(-tokens // size) * -(-new // size)
    found = item * (3 * queries + keys)
    if isinstance(system, Ranked):
        by_head = isinstance(system, Seer) and not system.skip_prefill
        found += _F32 * queries + _RANKING * tiles * (layer.heads if by_head else 1)
    if isinstance(system, SketchWalk):
        heads = 1 if system.heads == "mean" else layer.heads
        found += _F32 * new * heads * sketched_dim(system, layer.key_dim)
    elif isinstance(system, Oracle):
        found += _F32 * keys + 4 * _F32 * 2**24
    return found


def gate_dim_of(folder: str | Path) -> int:
    """`gate_dim` of the gates in a folder.

    Raises:
        ValueError: there are none.
    """
    try:
        return int(json.loads((Path(folder) / "gates.json").read_text())["gate_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no gates.json with a gate_dim ({error})") from None
