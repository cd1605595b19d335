"""What a model carries from one chunk of a text to the next, whichever way it keeps it."""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from needlework.attention.apply import Handle
from needlework.attention.eviction import Eviction, grows
from needlework.evaluation.meter import cache_bytes
from needlework.evaluation.streaming.snapshot import Plain, freeze, thaw

Snapshot = tuple[Plain, list[Tensor]]


class KVState(Protocol):
    """State between forwards over one text."""

    def reset(self) -> None:
        """Begin a text."""

    def arguments(self, tokens: int) -> dict[str, Any]:
        """What the forward of the next `tokens` tokens is told."""

    def take(self, output: Any, tokens: int) -> None:
        """Take over the state that a forward of `tokens` tokens left."""

    def snapshot(self, brief: bool = False) -> Snapshot:
        """The state as it is, unharmed by what comes; brief: to go back to from the next forward,
        not to be saved."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""

    @property
    def grows(self) -> bool:
        """Whether more is held with every token."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


def carried_by(model: nn.Module, handle: Handle | None) -> KVState | None:
    """How `model` keeps state; None where it does not."""
    if isinstance(model, PreTrainedModel):
        return InCache(model, handle)
    if all(hasattr(model, name) for name in ("get_state", "set_state", "reset_state")):
        return InModel(model)
    return None


class InCache:
    """A model of transformers: its cache, of whatever layers. The window system's is emptied."""

    def __init__(self, model: PreTrainedModel, handle: Handle | None):
        self._model, self._handle = model, handle
        accepted = inspect.signature(model.base_model.forward).parameters
        self._name = "cache_params" if "cache_params" in accepted else "past_key_values"
        evicts = handle is not None and handle.system.evicts_cache
        self._evict = Eviction(handle) if evicts else None
        self.reset()

    def reset(self) -> None:
        self._cache, self._seen = None, 0

    def arguments(self, tokens: int) -> dict[str, Any]:
        device = self._model.device
        known: dict[str, Any] = {"use_cache": True}
        if self._cache is not None:
            known[self._name] = self._cache
        if self._handle is not None:
            # All of it is prompt: a last chunk of one token is no decode.
            before = 0 if self._cache is None else self._cache.get_seq_length()
            self._handle.prompt_tokens = before + tokens
        if self._evict is not None:
            positions = torch.arange(self._seen, self._seen + tokens, device=device)
            known["position_ids"] = positions[None]
        return known | start_of_segments(self._model)

    def take(self, output: Any, tokens: int) -> None:
        self._cache = getattr(output, self._name, None)
        self._seen += tokens
        if self._evict is not None and self._evict.serves(self._cache):
            self._evict(self._cache)

    def snapshot(self, brief: bool = False) -> Snapshot:
        tensors: list[Tensor] = []
        return freeze([self._cache, self._seen], tensors, by_length=brief), tensors

    def restore(self, snapshot: Snapshot) -> None:
        frozen, tensors = snapshot
        if self._cache is None and "object" in frozen["list"][0]:
            # A cache to fill: one that has seen a token has all its parts.
            token = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
            self.take(self._model.base_model(token, **self.arguments(1)), 1)
        # A second attempt must find what the first was given, whatever that changed in place.
        copies = [x.clone() for x in tensors]
        self._cache, self._seen = thaw(frozen, copies, [self._cache, None])

    @property
    def grows(self) -> bool:
        if self._cache is None:
            return False
        if self._evict is not None and self._evict.serves(self._cache):
            return False
        return any(grows(layer) for layer in self._cache.layers)

    @property
    def nbytes(self) -> int:
        return cache_bytes(self._cache)


class InModel:
    """Any other module with get_state(), set_state(state) and reset_state().

    The state is tensors, numbers and text, in lists and dicts as it likes.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._sizes: list[int] = []
        self.reset()

    def reset(self) -> None:
        self._model.reset_state()
        self._sizes = []

    def arguments(self, tokens: int) -> dict[str, Any]:
        return {}

    def take(self, output: Any, tokens: int) -> None:
        self._sizes = [*self._sizes[-1:], self.nbytes]

    def snapshot(self, brief: bool = False) -> Snapshot:
        tensors: list[Tensor] = []
        return freeze(self._model.get_state(), tensors), tensors

    def restore(self, snapshot: Snapshot) -> None:
        frozen, tensors = snapshot
        self._model.set_state(thaw(frozen, [x.clone() for x in tensors]))

    @property
    def grows(self) -> bool:
        # Seen, not known: the last forward left more than the one before.
        return len(self._sizes) == 2 and self._sizes[1] > self._sizes[0]

    @property
    def nbytes(self) -> int:
        return cache_bytes(self._model.get_state())


def start_of_segments(model: nn.Module) -> dict[str, Tensor]:
    """For Infini-attention: segments begin with the text, whose end nobody knows yet."""
    if getattr(getattr(model, "config", None), "infini", None) is None:
        return {}
    return {"segment_offset": torch.zeros(1, dtype=torch.long, device=model.device)}
