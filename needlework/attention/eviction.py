"""Cache eviction for the window method: keys that no later token attends to leave the cache."""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from needlework.attention.apply import Handle
from needlework.attention.cache_state import MethodState
from needlework.config.attention.window import Window


def grows(layer: object) -> bool:
    """Whether a cache layer grows with every token, without a bound."""
    return isinstance(layer, DynamicLayer) and not layer.is_sliding


class Eviction:
    """After each forward, evict from a cache all tokens between the sinks and the recent ones.

    The remaining tokens are renumbered from 0, sinks first. The window's rule (a key is a sink, or
    less than recent_tokens before the query) holds for these numbers too, so attention matches that
    over the full cache as long as the model gets the true positions.

    Args:
        handle: the handle of an applied `window` method.
    """

    def __init__(self, handle: Handle):
        if not isinstance(handle.system, Window):
            raise TypeError(
                f"{type(handle.system).__name__}: does not support cache eviction; use Window"
            )
        self.system = handle.system
        self.layers = handle.sparse_layers

    def supports(self, cache: Cache) -> bool:
        """Whether the window covers every growing layer; a dense one would need all keys."""
        growing = {i for i, layer in enumerate(cache.layers) if grows(layer)}
        return growing <= self.layers and self.system.stages == "both"

    def __call__(self, cache: Cache) -> None:
        """Evict from a cache whose rows have no padding."""
        sinks, recent = self.system.sink_tokens, self.system.recent_tokens - 1
        for layer in cache.layers:
            if grows(layer) and layer.is_initialized:
                layer.keys, layer.values = (
                    torch.cat([x[:, :, :sinks], x[:, :, max(sinks, x.shape[2] - recent) :]], dim=2)
                    for x in (layer.keys, layer.values)
                )
            elif isinstance(layer, MethodState):
                layer.length = cache.get_seq_length()
