"""Memory of the device that a model runs on, and what running out of it looks like."""

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch

Found = TypeVar("Found")
_SPARE_BYTES = 2**28


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in told
        or "can't allocate memory" in told
        or "not enough memory" in told
        or "alloc_failed" in told  # cuBLAS and cuDNN
    )


def retry_on_oom(
    do: Callable[[int], Found], tries: int, undo: Callable[[], object] = lambda: None
) -> Found:
    """`do(0)`; where memory runs out `undo()` and `do(1)`, and so on: `tries` times in all.

    Raises:
        MemoryError: it ran out each time.
    """
    for attempt in range(tries):
        try:
            return do(attempt)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`, where the failed attempt's tensors are no longer held.
        undo()
        free_cache()
    raise MemoryError("out of memory")


def free_cache() -> None:
    """Return what is no longer used to the device."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def begin_peak() -> None:
    """Forget the GPU's peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Peak bytes since the process began: allocated on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


def bound_memory(processes: int = 1) -> None:
    """Let allocations fail beyond this process's share of the memory that is free now, which can be
    told and recorded; the system would end the process, which cannot. GPUs tell by themselves."""
    process = psutil.Process().memory_info()
    free = psutil.virtual_memory().available - _SPARE_BYTES
    if (bound := _control_group_bytes()) is not None:
        free = min(free, bound - process.rss - _SPARE_BYTES)
    free = max(_SPARE_BYTES, free // processes)
    wanted = process.data + free if hasattr(process, "data") else free
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def _control_group_bytes() -> int | None:
    """The bound of the process's control group, as Slurm and containers set it; None: none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return None
