"""What a system remembers between forwards, kept in the model's cache beside keys and values."""

from collections.abc import Callable

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DummyLayer


class State(DummyLayer):
    """A last layer of the cache, with no keys or values, that holds a system's own tensors.

    The cache resets, reorders and crops all of its layers alike, so the tensors follow it. Each
    tensor has the batch as its first dimension.
    """

    def __init__(self, block_size: int):
        super().__init__()
        self.block_size = block_size
        self.tensors: dict[int, dict[str, Tensor]] = {}
        self.first: list[int] = []
        self.length = 0

    @classmethod
    def of(cls, cache: Cache | None, layers: int, block_size: int) -> "State":
        """The state in `cache`, put there if the cache is new; one for this forward without cache.

        Raises:
            ValueError: the cache holds tokens that the system has not seen.
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
        if state.length != cache.get_seq_length():
            raise ValueError(
                f"past_key_values: holds {cache.get_seq_length()} tokens, of which this attention "
                f"system saw {state.length}; begin with an empty cache"
            )
        return state

    @property
    def is_croppable(self) -> bool:
        return not self.tensors

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        return sum(tensor.nbytes for held in self.tensors.values() for tensor in held.values())

    def reset(self) -> None:
        self.tensors.clear()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, given as a number below 0.

        Raises:
            ValueError: a block that was full would be partly forgotten; its queries are gone.
        """
        length = self.length - abs(tokens_to_remove)
        for first in self.first if self.tensors else []:
            seen, left = max(0, self.length - first), max(0, length - first)
            if left % self.block_size and left // self.block_size < (seen - 1) // self.block_size:
                raise ValueError(
                    f"crop: {-abs(tokens_to_remove)} would cut through a block of "
                    f"{self.block_size} tokens that is complete; crop to a block's edge"
                )
        self.length = length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        self.first = [self.first[i] for i in beam_idx.tolist()] if self.first else []

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))
        self.first = [first for first in self.first for _ in range(repeats)]

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda tensor: tensor[indices])
        self.first = [self.first[i] for i in indices.tolist()] if self.first else []

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for held in self.tensors.values():
            for name, tensor in held.items():
                held[name] = change(tensor)
