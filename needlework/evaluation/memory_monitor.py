"""Memory over time during a block of work: resident, and on the GPU if there is one."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from needlework.runtime.memory import reset_peak_memory

_SAMPLE_EVERY_SECONDS = 0.05
_MAX_POINTS = 256


class MemoryMonitor:
    """Samples this process's memory in a thread while a `with` block runs.

    Entering the block starts a new peak (`runtime.memory.peak_memory_bytes`).

    Attributes:
        points: dicts of seconds (since the start of the block), resident_bytes and gpu_bytes
            (allocated; None without a GPU), in order of time. The first and last point are the
            block's start and end. Each point between them is the maximum since the previous one,
            sampled every 0.05 s; steps widen in a long block, so that there are at most 256 points.
        peak_resident_bytes: maximum of resident_bytes.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self.peak_resident_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryMonitor":
        reset_peak_memory()
        self._started = time.perf_counter()
        self.points.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.points.append(self._read())
        self.peak_resident_bytes = max(point["resident_bytes"] for point in self.points)

    def _watch(self) -> None:
        step, pending = 1, []
        while not self._done.wait(_SAMPLE_EVERY_SECONDS):
            pending.append(self._read())
            if len(pending) == step:
                self.points.append(_maximum(pending))
                pending.clear()
            if len(self.points) == _MAX_POINTS - 2:
                first, *rest = self.points
                pairs = zip(rest[::2], rest[1::2], strict=False)
                self.points = [first, *map(_maximum, pairs), *rest[len(rest) // 2 * 2 :]]
                step *= 2
        if pending:
            self.points.append(_maximum(pending))

    def _read(self) -> dict[str, Any]:
        gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
        return {
            "seconds": time.perf_counter() - self._started,
            "resident_bytes": self._process.memory_info().rss,
            "gpu_bytes": gpu,
        }


def _maximum(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge points: the last one's time, the maximum of each memory."""
    maximum = {
        key: max((p[key] for p in points if p[key] is not None), default=None)
        for key in ("resident_bytes", "gpu_bytes")
    }
    return {"seconds": points[-1]["seconds"], **maximum}
