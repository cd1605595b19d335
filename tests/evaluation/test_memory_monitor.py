"""Memory over time: no peak is missed, and the number of points is bounded."""

import gc
import random
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from needlework.evaluation import memory_monitor
from needlework.evaluation.memory_monitor import MemoryMonitor

pytestmark = pytest.mark.slow

_BYTES = 300 * 2**20


def _allocate(seconds: float) -> None:
    """Hold memory that the allocator returns as soon as it is freed."""
    array = np.ones(_BYTES // 8)
    time.sleep(seconds)
    del array
    gc.collect()


def test_a_peak_within_the_block_is_seen():
    with MemoryMonitor() as monitor:
        time.sleep(0.2)
        _allocate(0.3)
        time.sleep(0.2)
    bytes_ = [point["resident_bytes"] for point in monitor.points]
    assert monitor.peak_resident_bytes == max(bytes_)
    assert max(bytes_) - bytes_[0] > 0.9 * _BYTES
    assert max(bytes_) - bytes_[-1] > 0.9 * _BYTES
    seconds = [point["seconds"] for point in monitor.points]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < 0.1
    assert seconds[-1] > 0.69
    assert {point["gpu_bytes"] for point in monitor.points} == {None}


def test_steps_of_a_long_block_widen_without_losing_peaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_monitor, "_SAMPLE_EVERY_SECONDS", 1e-4)
    monkeypatch.setattr(memory_monitor, "_MAX_POINTS", 12)
    with MemoryMonitor() as monitor:
        _allocate(0.1)
        time.sleep(0.4)
    assert 4 <= len(monitor.points) <= 12
    bytes_ = [point["resident_bytes"] for point in monitor.points]
    assert max(bytes_) - bytes_[0] > 0.9 * _BYTES
    seconds = [point["seconds"] for point in monitor.points]
    assert seconds == sorted(seconds)


class _Scripted(MemoryMonitor):
    """A monitor of given readings, without a clock."""

    def __init__(self, readings: list[dict]):
        super().__init__()
        self._remaining = iter(readings)
        between = iter([False] * (len(readings) - 2))
        self._done = SimpleNamespace(wait=lambda _: next(between, True))
        self.points.append(self._read())
        self._watch()
        self.points.append(self._read())

    def _read(self) -> dict:
        return next(self._remaining)


@pytest.mark.parametrize("count", [2, 3, 11, 12, 13, 40, 41, 100, 333, 1000])
def test_each_point_is_the_maximum_since_the_previous_one(
    count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory_monitor, "_MAX_POINTS", 12)
    draw = random.Random(count)
    readings = [
        {"seconds": i, "resident_bytes": draw.randrange(10**9), "gpu_bytes": draw.randrange(10**9)}
        for i in range(count)
    ]
    points = _Scripted(readings).points
    assert (points[0], points[-1]) == (readings[0], readings[-1])
    assert len(points) <= 12
    steps = []
    for before, point in pairwise(points):
        since = readings[before["seconds"] + 1 : point["seconds"] + 1]
        steps.append(len(since))
        for key in ("resident_bytes", "gpu_bytes"):
            assert point[key] == max(reading[key] for reading in since)
    # Except for the last ones, steps have the same width.
    assert max(steps) <= 2 * min(steps[:-2], default=count)


def test_a_failing_block_ends_the_monitor():
    with pytest.raises(KeyError), MemoryMonitor() as monitor:
        raise KeyError
    assert not monitor._thread.is_alive()
    assert len(monitor.points) >= 2
