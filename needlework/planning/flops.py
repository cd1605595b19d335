"""Floating point operations of attention in prefill and decode, by the model's shape.

Attention costs 2 (d_k + d_v) a pair of query and key and head (Kaplan et al., 2020, appendix B;
causal pairs alone, as kernels compute).
"""

import math

import numpy as np

from needlework.config.attention import (
    Attention,
    BlockSparse,
    Infini,
    Oracle,
    Seer,
    SketchWalk,
    Window,
    XAttention,
)
from needlework.planning.memory import kept_blocks, sketched_dim
from needlework.planning.shape import Layer, Shape


def causal_pairs(tokens: int, reach: int | None = None) -> int:
    """Pairs of a query and a key no later, and with `reach` less than so many tokens before it."""
    if reach is None or reach >= tokens:
        return tokens * (tokens + 1) // 2
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


def layer_pairs(layer: Layer, tokens: int) -> int:
    """Pairs of query and key that one layer of the model's own attention computes."""
    if layer.kv_heads == 0:
        return 0
    if layer.window is not None and layer.kind == "chunked_attention":
        whole, rest = divmod(tokens, layer.window)
        return whole * causal_pairs(layer.window) + causal_pairs(rest)
    return causal_pairs(tokens, layer.window)


def prefill_density(system: Attention | None, tokens: int) -> float:
    """Kept / causal pairs of a replaced layer, 0-1.

    1 where the text decides (thresholds): what is planned then is the most that it can be.
    """
    if not isinstance(system, BlockSparse) or (system.skips("prefill") and system.skip_decode):
        return 1.0
    if isinstance(system, Window):
        kept = causal_pairs(tokens, system.recent_tokens)
        sinks = min(system.sink_tokens, tokens)
        kept += max(0, tokens - system.recent_tokens) * sinks
        return min(1.0, kept / causal_pairs(tokens))
    if getattr(system, "skip_prefill", False) or getattr(system, "threshold", None) is not None:
        return 1.0
    blocks = -(-tokens // system.block_size)
    rows = np.arange(1, blocks + 1)
    if isinstance(system, SketchWalk) and system.select == "quantile":
        kept = (1 - system.quantile) * rows + blocks * (system.local_share + system.sink_share)
    elif isinstance(system, Seer) and system.nz_ratio is not None:
        kept = np.full(
            blocks, 1 + max(1, math.floor((1 - math.sqrt(1 - system.nz_ratio)) * blocks))
        )
    elif system.density is not None:
        kept = np.ceil(system.density * rows)
    else:
        kept = np.full(blocks, system.top_k_blocks)
    dense_rows = getattr(system, "dense_last_rows", 0)
    kept = np.minimum(kept, rows)
    if dense_rows:
        kept[-dense_rows:] = rows[-dense_rows:]
    return min(1.0, float(kept.sum() / rows.sum()))


def decode_density(system: Attention | None, tokens: int) -> float:
    """Keys read / keys held by one token that decodes upon `tokens`, in a replaced layer, 0-1."""
    if not isinstance(system, BlockSparse) or system.skip_decode:
        return 1.0
    if isinstance(system, Window):
        return min(1.0, (system.sink_tokens + system.recent_tokens) / tokens)
    blocks = -(-tokens // system.block_size)
    if isinstance(system, Seer) and system.token_budget is not None:
        return min(1.0, (system.token_budget // system.block_size + 1) / blocks)
    by_text = "decode_threshold" if isinstance(system, Seer) else "threshold"
    if getattr(system, by_text, None) is not None:
        return 1.0
    return kept_blocks(system, blocks) / blocks


def pair_flops(shape: Shape) -> int:
    """Operations of all layers for one pair of a query and a key."""
    held = (layer for layer in shape.layers if layer.kv_heads)
    return sum(2 * layer.heads * (layer.key_dim + layer.value_dim) for layer in held)


def attention_flops(
    shape: Shape, system: Attention | None, tokens: int, first: int = 0
) -> tuple[int, int]:
    """Operations of attention over a prompt, and of one token that decodes upon it.

    Infini-attention: segments of S tokens, 2 S d_v' for each read and write of the memory. What
    chooses blocks counts too: block scores, and the walk's b^3 products.
    """
    prefill = decode = 0.0
    for index, layer in enumerate(shape.layers):
        if layer.kv_heads == 0:
            continue
        pair = 2 * layer.heads * (layer.key_dim + layer.value_dim)
        pairs = layer_pairs(layer, tokens)
        keys = tokens if layer.window is None else min(tokens, layer.window)
        if isinstance(system, Infini) and layer.is_full:
            size = min(system.segment_length, tokens)
            memory = 4 * layer.heads * layer.key_dim * layer.value_dim
            prefill += pair * tokens / size * causal_pairs(size) + memory * tokens
            decode += pair * size + memory
            continue
        sparse = isinstance(system, BlockSparse) and layer.is_full and index >= system.dense_layers
        if sparse:
            prefill += pair * pairs * prefill_density(system, tokens)
            prefill += _choosing(system, layer, tokens)
            decode += pair * keys * decode_density(system, tokens)
        else:
            prefill += pair * pairs
            decode += pair * keys
    return round(prefill), round(decode)


def _choosing(system: BlockSparse, layer: Layer, tokens: int) -> float:
    """Operations of one layer's choice of blocks in a prefill."""
    blocks, heads = -(-tokens // system.block_size), layer.heads
    if isinstance(system, SketchWalk):
        heads = 1 if system.heads == "mean" else heads
        steps = {"off": 0, "product": 1, "damped": system.walk_steps}[system.walk]
        r = sketched_dim(system, layer.key_dim) * (2 if system.keys == "box" else 1)
        width = blocks if system.walk_memory == "full" else kept_blocks(system, blocks)
        return 2 * blocks**2 * heads * r + 2 * steps * blocks * width * width
    if isinstance(system, Seer):
        return 2 * blocks**2 * heads * layer.key_dim
    if isinstance(system, XAttention):
        return 2 * tokens**2 / system.stride * heads * layer.key_dim
    if isinstance(system, Oracle):
        return 2 * tokens**2 * heads * layer.key_dim
    return 0.0
