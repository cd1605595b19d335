"""Timing of a generation, and the size of its cache."""

import time

import torch
from transformers import StoppingCriteria


class FirstTokenClock(StoppingCriteria):
    """Splits the time of one `generate` call into prefill and decode, without ever stopping it.

    Pass a new instance to each call. Prefill ends with the choice of the first token.
    """

    def __init__(self) -> None:
        self._started = _now()
        self._first_token: float | None = None

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        if self._first_token is None:
            self._first_token = _now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def seconds(self) -> tuple[float, float]:
        """Seconds of prefill and of decode; call it after `generate` has returned.

        Raises:
            RuntimeError: no token was generated.
        """
        if self._first_token is None:
            raise RuntimeError("the clock was not passed to generate, or no token was generated")
        return self._first_token - self._started, _now() - self._first_token


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cache_bytes(cache: object) -> int:
    """Bytes of all tensors in a KV cache, each storage counted once.

    Walks attributes, lists and dicts, and so includes the state that attention systems keep in the
    cache.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    pending = [cache]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            # On the meta device all data pointers are 0.
            storages[storage._cdata] = storage.nbytes()
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, list | tuple):
                pending.extend(value)
            elif hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module):
                pending.extend(vars(value).values())
    return sum(storages.values())
