"""State that a model carries from one chunk of a text to the next."""

import inspect
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from needlework.attention.apply import Handle
from needlework.attention.eviction import Eviction, grows
from needlework.evaluation.meter import cache_bytes
from needlework.evaluation.streaming.snapshot import Structure, freeze, thaw

Snapshot = tuple[Structure, list[Tensor]]


class KVState(Protocol):
    """State between the forwards over one text."""

    def reset(self) -> None:
        """Start a new text."""

    def forward_arguments(self, tokens: int) -> dict[str, Any]:
        """Arguments of the forward of the next `tokens` tokens."""

    def update(self, output: Any, tokens: int) -> None:
        """Take over the state after a forward of `tokens` tokens."""

    def snapshot(self, temporary: bool = False) -> Snapshot:
        """Copy the state, as far as later forwards may change it.

        Args:
            temporary: the snapshot is only used to undo the next forward.
        """

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""

    @property
    def grows(self) -> bool:
        """Whether the state grows with every token."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


@runtime_checkable
class StatefulModule(Protocol):
    """A module that keeps its own state: tensors, numbers and text, in lists and dicts."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def reset_state(self) -> None: ...


def kv_state_of(model: nn.Module, handle: Handle | None) -> KVState | None:
    """Return the state of `model`, or None if it cannot carry any."""
    if isinstance(model, PreTrainedModel):
        return TransformersCacheState(model, handle)
    if isinstance(model, StatefulModule):
        return ModuleState(model)
    return None


class TransformersCacheState:
    """State in the cache of a transformers model; a system may evict keys from it."""

    def __init__(self, model: PreTrainedModel, handle: Handle | None):
        self._model, self._handle = model, handle
        parameters = inspect.signature(model.base_model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._evict = Eviction(handle) if handle and handle.system.evicts_cache else None
        self.reset()

    def reset(self) -> None:
        self._cache: Cache | None = None
        self._position = 0

    def forward_arguments(self, tokens: int) -> dict[str, Any]:
        device = self._model.device
        arguments: dict[str, Any] = {"use_cache": True}
        if self._cache is not None:
            arguments[self._cache_name] = self._cache
        if self._handle is not None:
            # The whole text is prompt: a last chunk of one token is not a decode step.
            before = 0 if self._cache is None else self._cache.get_seq_length()
            self._handle.prompt_tokens = before + tokens
        if self._evict is not None:
            positions = torch.arange(self._position, self._position + tokens, device=device)
            arguments["position_ids"] = positions[None]
        return arguments | segment_arguments(self._model)

    def update(self, output: Any, tokens: int) -> None:
        self._cache = getattr(output, self._cache_name, None)
        self._position += tokens
        if (
            self._evict is not None
            and self._cache is not None
            and self._evict.supports(self._cache)
        ):
            self._evict(self._cache)

    def snapshot(self, temporary: bool = False) -> Snapshot:
        tensors: list[Tensor] = []
        return freeze([self._cache, self._position], tensors, by_length=temporary), tensors

    def restore(self, snapshot: Snapshot) -> None:
        structure, tensors = snapshot
        if self._cache is None and "object" in structure["list"][0]:
            # Make a cache to fill: after one token it has all of its parts.
            token = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
            self.update(self._model.base_model(token, **self.forward_arguments(1)), 1)
        # Forwards may change tensors in place, and a second attempt restores the same snapshot.
        copies = [x.clone() for x in tensors]
        self._cache, self._position = thaw(structure, copies, [self._cache, None])

    @property
    def grows(self) -> bool:
        if self._cache is None:
            return False
        if self._evict is not None and self._evict.supports(self._cache):
            return False
        return any(grows(layer) for layer in self._cache.layers)

    @property
    def nbytes(self) -> int:
        return cache_bytes(self._cache)


class ModuleState:
    """State that a module keeps itself."""

    def __init__(self, model: StatefulModule):
        self._model = model
        self._sizes: list[int] = []
        self.reset()

    def reset(self) -> None:
        self._model.reset_state()
        self._sizes = []

    def forward_arguments(self, tokens: int) -> dict[str, Any]:
        return {}

    def update(self, output: Any, tokens: int) -> None:
        self._sizes = [*self._sizes[-1:], self.nbytes]

    def snapshot(self, temporary: bool = False) -> Snapshot:
        tensors: list[Tensor] = []
        return freeze(self._model.get_state(), tensors), tensors

    def restore(self, snapshot: Snapshot) -> None:
        structure, tensors = snapshot
        self._model.set_state(thaw(structure, [x.clone() for x in tensors]))

    @property
    def grows(self) -> bool:
        # Observed: the state is larger after the last forward than after the one before.
        return len(self._sizes) == 2 and self._sizes[1] > self._sizes[0]

    @property
    def nbytes(self) -> int:
        return cache_bytes(self._model.get_state())


def segment_arguments(model: nn.Module) -> dict[str, Tensor]:
    """Have Infini-attention align segments to the start of the text, as its end is unknown."""
    if getattr(getattr(model, "config", None), "infini", None) is None:
        return {}
    device = next(model.parameters()).device
    return {"segment_offset": torch.zeros(1, dtype=torch.long, device=device)}
