"""The window system in constant memory: keys that no token will see again leave the cache."""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from needlework.attention.apply import Handle
from needlework.attention.cache_state import State
from needlework.config.attention import Window


def grows(layer: object) -> bool:
    """Whether a layer of a cache holds more with every token, for ever."""
    return isinstance(layer, DynamicLayer) and not layer.is_sliding


class Eviction:
    """Drops from a cache what lies between the sinks and the recent tokens, after each forward.

    What is left is counted from 0 again, sinks first. The window's rule (a key is a sink, or less
    than recent_tokens before the query) reads the same in these numbers, so attention stays that
    of the whole text as long as the model is told the true positions.

    Args:
        handle: a `window` system on a model.
    """

    def __init__(self, handle: Handle):
        if not isinstance(handle.system, Window):
            raise TypeError(f"{handle.system.type}: has no rule by which keys leave the cache")
        self.system = handle.system
        self.layers = handle.sparse_layers

    def serves(self, cache: Cache) -> bool:
        """Whether every growing layer is the window's; else a dense one needs all keys."""
        growing = {i for i, layer in enumerate(cache.layers) if grows(layer)}
        return growing <= self.layers and not self.system.skip_decode

    def __call__(self, cache: Cache) -> None:
        """Drop them from a cache of rows without padding."""
        sinks, recent = self.system.sink_tokens, self.system.recent_tokens - 1
        for layer in cache.layers:
            if grows(layer) and layer.is_initialized:
                layer.keys, layer.values = (
                    torch.cat([x[:, :, :sinks], x[:, :, max(sinks, x.shape[2] - recent) :]], dim=2)
                    for x in (layer.keys, layer.values)
                )
            elif isinstance(layer, State):
                layer.length = cache.get_seq_length()
