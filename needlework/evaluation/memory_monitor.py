"""Memory over time of a block of work: resident, and on the GPU if there is one."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from needlework.runtime.memory import reset_peak_memory

_EVERY_SECONDS = 0.05
_MOST_POINTS = 256


class MemoryMonitor:
    """Reads this process's memory in a thread while a `with` block runs.

    Attributes:
        points: dicts of seconds (since the block began), resident_bytes and gpu_bytes (allocated;
            None without a GPU), in the order of time. The first and last moment are always there.
            Between them each is the most since the one before, read every 0.05 s; a long block
            has wider steps, so there are never more than 256.
        peak_resident_bytes: the most of them.

    The GPU's own count of its peak (`memory.peak_memory_bytes`) begins anew with the block.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self.peak_resident_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryMonitor":
        reset_peak_memory()
        self._began = time.perf_counter()
        self.points.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.points.append(self._read())
        self.peak_resident_bytes = max(point["resident_bytes"] for point in self.points)

    def _watch(self) -> None:
        readings, most = 1, []
        while not self._done.wait(_EVERY_SECONDS):
            most.append(self._read())
            if len(most) == readings:
                self.points.append(_most(most))
                most.clear()
            if len(self.points) == _MOST_POINTS - 2:
                first, *rest = self.points
                pairs = zip(rest[::2], rest[1::2], strict=False)
                self.points = [first, *map(_most, pairs), *rest[len(rest) // 2 * 2 :]]
                readings *= 2
        if most:
            self.points.append(_most(most))

    def _read(self) -> dict[str, Any]:
        gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
        return {
            "seconds": time.perf_counter() - self._began,
            "resident_bytes": self._process.memory_info().rss,
            "gpu_bytes": gpu,
        }


def _most(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One point for several: the last one's time, the most of each memory."""
    most = {
        key: max((p[key] for p in points if p[key] is not None), default=None)
        for key in ("resident_bytes", "gpu_bytes")
    }
    return {"seconds": points[-1]["seconds"], **most}
