"""Time and memory of one generation."""

import time

import torch
from transformers import StoppingCriteria


class FirstTokenClock(StoppingCriteria):
    """Splits the time of one `generate` call into prefill and decode; never stops it.

    Pass a new one to each call. Prefill ends when the first token is chosen.
    """

    def __init__(self) -> None:
        self._started = _now()
        self._first: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        if self._first is None:
            self._first = _now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def seconds(self) -> tuple[float, float]:
        """Seconds of prefill and of all decode steps, read when `generate` has returned."""
        return self._first - self._started, _now() - self._first


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cache_bytes(cache: object) -> int:
    """Bytes of all tensors that a KV cache holds, each storage counted once.

    Walks attributes, lists and dicts below `cache`, so that the state of any attention system that
    lives in the cache counts too.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    pending = [cache]
    while pending:
        found = pending.pop()
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            # On the meta device all data pointers are 0.
            storages[storage._cdata] = storage.nbytes()
        elif id(found) not in seen:
            seen.add(id(found))
            if isinstance(found, dict):
                pending.extend(found.values())
            elif isinstance(found, list | tuple):
                pending.extend(found)
            elif hasattr(found, "__dict__") and not isinstance(found, type | torch.nn.Module):
                pending.extend(vars(found).values())
    return sum(storages.values())
