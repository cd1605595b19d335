"""Floating point operations of attention in prefill and decode.

Counts causal pairs only, as kernels compute them.
"""

from needlework.attention.base import Computation
from needlework.planning.shape import Shape


def pair_flops(shape: Shape) -> int:
    """Operations of all layers for one pair of a query and a key."""
    return sum(layer.pair_flops for layer in shape.layers if layer.kv_heads)


def attention_flops(shape: Shape, method: Computation | None, tokens: int) -> tuple[int, int]:
    """Operations of attention in a prefill of `tokens`, and in decoding one token after it.

    Args:
        method: computes the layers that it replaces; None: the model's own attention.
    """
    prefill = decode = 0.0
    for index, layer in enumerate(shape.layers):
        if layer.kv_heads == 0:
            continue
        if method is not None and method.replaces(index, layer):
            of_prompt, of_token = method.attention_flops(layer, tokens)
        else:
            keys = tokens if layer.window is None else min(tokens, layer.window)
            of_prompt = layer.pair_flops * layer.pairs(tokens)
            of_token = layer.pair_flops * keys
        prefill += of_prompt
        decode += of_token
    return round(prefill), round(decode)
