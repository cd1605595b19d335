"""Tensors that an attention method keeps between forwards, stored in the model's cache."""

from collections.abc import Callable

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DummyLayer


class MethodState(DummyLayer):
    """An extra last layer of the cache, without keys or values, that holds a method's tensors.

    The cache resets, reorders and crops all its layers together, this one included. The first
    dimension of each tensor is the batch.
    """

    is_compileable = False

    def __init__(self, block_size: int):
        super().__init__()
        self.block_size = block_size
        self.tensors: dict[int, dict[str, Tensor]] = {}
        """By layer index and name."""
        self.first: list[int] = []
        """Position of the first real token of each row."""
        self.length = 0
        """Tokens in the cache, padding included."""

    @classmethod
    def get_or_create(cls, cache: Cache | None, layers: int, block_size: int) -> "MethodState":
        """Return the state in `cache`; add one to a new cache, or return one without a cache.

        Raises:
            ValueError: the cache has tokens that the method has not seen.
        """
        if cache is None:
            return cls(block_size)
        state = next((layer for layer in cache.layers if isinstance(layer, cls)), None)
        if state is None:
            if cache.layer_class_to_replicate is not None:
                while len(cache.layers) < layers:
                    cache.layers.append(cache.layer_class_to_replicate())
            state = cls(block_size)
            cache.layers.append(state)
        tokens = int(cache.get_seq_length())
        if state.length != tokens:
            raise ValueError(
                f"past_key_values: has {tokens} tokens, but this attention method "
                f"has seen {state.length}; start with an empty cache"
            )
        return state

    @property
    def is_croppable(self) -> bool:
        return not self.tensors

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(x.nbytes for by_name in self.tensors.values() for x in by_name.values())

    def reset(self) -> None:
        self.tensors.clear()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number.

        Raises:
            ValueError: the cut is within a complete block, whose queries are no longer available.
        """
        length = self.length - abs(tokens_to_remove)
        for first in self.first if self.tensors else []:
            before, after = max(0, self.length - first), max(0, length - first)
            if (
                after % self.block_size
                and after // self.block_size < (before - 1) // self.block_size
            ):
                raise ValueError(
                    f"crop: {-abs(tokens_to_remove)} would cut through a complete block of "
                    f"{self.block_size} tokens; crop to the boundary of a block"
                )
        self.length = length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        self.first = [self.first[i] for i in beam_idx.tolist()] if self.first else []

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))
        self.first = [first for first in self.first for _ in range(repeats)]

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda tensor: tensor[indices])
        self.first = [self.first[i] for i in indices.tolist()] if self.first else []

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        for by_name in self.tensors.values():
            for name, tensor in by_name.items():
                by_name[name] = function(tensor)
