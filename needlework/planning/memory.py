"""Bytes that an attention method adds to a model's cache and to the peak of a prefill."""

from needlework.attention.base import Computation
from needlework.attention.layers import LayerShape
from needlework.planning.shape import Shape


def replaced_layers(shape: Shape, method: Computation) -> list[LayerShape]:
    """The layers that `method` replaces."""
    return [layer for index, layer in enumerate(shape.layers) if method.replaces(index, layer)]


def state_bytes(shape: Shape, method: Computation | None, tokens: int) -> int:
    """Bytes of the method's state in the cache after `tokens` tokens, batch 1."""
    if method is None:
        return 0
    return sum(method.state_bytes(layer, tokens) for layer in replaced_layers(shape, method))


def bounded_cache_bytes(shape: Shape, method: Computation, tokens: int) -> int:
    """Bytes of the cache if replaced layers hold only the method's state, batch 1.

    The other layers hold the keys and values of their window.
    """
    windows = sum(
        min(tokens, (layer.window or tokens) - 1) * layer.kv_row_bytes
        for index, layer in enumerate(shape.layers)
        if not method.replaces(index, layer)
    )
    return state_bytes(shape, method, tokens) + windows


def workspace_bytes(
    shape: Shape, method: Computation | None, tokens: int, chunk: int | None = None
) -> int:
    """Peak bytes of the method's temporary tensors in a prefill, besides the model's own.

    Args:
        method: None: the model's own attention, which needs none.
        chunk: tokens prefilled in one forward; None: all.
    """
    if method is None or not (layers := replaced_layers(shape, method)):
        return 0
    return method.workspace_bytes(layers[0], tokens, min(tokens, chunk or tokens))
