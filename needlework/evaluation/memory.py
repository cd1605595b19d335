"""Memory of the device that a model runs on, and what running out of it looks like."""

import gc

import psutil
import torch

from needlework.evaluation.meter import peak_memory_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in told or "can't allocate memory" in told or "not enough memory" in told
    )


def give_back() -> None:
    """Return what is no longer used to the device."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def begin_peak() -> None:
    """Forget the GPU's peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def used_bytes() -> int:
    """Peak bytes allocated on the GPU since `begin_peak`, if there is one; else resident bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


def has_room(before: int) -> bool:
    """Whether something of twice the size may be tried, where the process held `before` bytes
    before anything was. A GPU says when it is full; the system would end the process instead."""
    if torch.cuda.is_available():
        return True
    return 4 * (peak_memory_bytes() - before) < psutil.virtual_memory().available
