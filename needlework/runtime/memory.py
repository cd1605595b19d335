"""Memory of the device a model runs on: peaks, limits, and recovery from out-of-memory errors."""

import gc
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch

Result = TypeVar("Result")
_SPARE_BYTES = 2**28


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message
        or "can't allocate memory" in message
        or "not enough memory" in message
        or "alloc_failed" in message  # cuBLAS and cuDNN
    )


def retry_on_oom(
    attempt: Callable[[int], Result], max_attempts: int, undo: Callable[[], object] = lambda: None
) -> Result:
    """Call `attempt(0)`, `attempt(1)`, ... until one fits in memory.

    Args:
        attempt: takes the number of the attempt.
        max_attempts: number of attempts.
        undo: called after each failed attempt.

    Raises:
        MemoryError: memory ran out in every attempt.
    """
    for number in range(max_attempts):
        try:
            return attempt(number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside `except`, where the failed attempt's tensors are no longer referenced.
        undo()
        free_cache()
    raise MemoryError("out of memory")


def free_cache() -> None:
    """Return unused memory to the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak_memory() -> None:
    """Start a new peak, of the GPU or of this process; only Linux resets that of a process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):  # some containers forbid it
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Peak bytes since the last reset on a GPU, else peak resident bytes of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_or_resident_bytes() -> int:
    """Peak bytes since the last reset if there is a GPU, else current resident bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


def can_double_memory(baseline_bytes: int) -> bool:
    """Whether work may grow to twice its size, given the process's memory before any work.

    Always true on a GPU, which raises when it is full; on a CPU the system would kill the process.
    """
    if torch.cuda.is_available():
        return True
    return 4 * (peak_memory_bytes() - baseline_bytes) < psutil.virtual_memory().available


def limit_memory(processes: int = 1) -> None:
    """Make allocations beyond this process's share of the free memory raise an error.

    Without a limit the system kills the process, and nothing can be recorded. GPUs raise anyway.
    """
    process = psutil.Process().memory_info()
    free = psutil.virtual_memory().available - _SPARE_BYTES
    if (cgroup_limit := _cgroup_limit_bytes()) is not None:
        free = min(free, cgroup_limit - process.rss - _SPARE_BYTES)
    free = max(_SPARE_BYTES, free // processes)
    limit = process.data + free if hasattr(process, "data") else free
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if hard_limit != resource.RLIM_INFINITY:
        limit = min(limit, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard_limit))


def _cgroup_limit_bytes() -> int | None:
    """Memory limit of the process's control group (Slurm, containers), or None."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return None
