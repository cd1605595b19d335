"""Memory over time: no peak is missed, and a long block has no more points than a short one."""

import gc
import random
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from needlework.evaluation import memory_monitor
from needlework.evaluation.memory_monitor import MemoryMonitor

_BYTES = 300 * 2**20


def _hold(seconds: float) -> None:
    # Beyond what an allocator keeps: given back as soon as it is let go.
    held = np.ones(_BYTES // 8)
    time.sleep(seconds)
    del held
    gc.collect()


def test_the_peak_between_two_moments_is_seen():
    with MemoryMonitor() as watched:
        time.sleep(0.2)
        _hold(0.3)
        time.sleep(0.2)
    bytes_ = [point["resident_bytes"] for point in watched.points]
    assert watched.peak_resident_bytes == max(bytes_)
    assert max(bytes_) - bytes_[0] > 0.9 * _BYTES
    assert max(bytes_) - bytes_[-1] > 0.9 * _BYTES
    seconds = [point["seconds"] for point in watched.points]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < 0.1
    assert seconds[-1] > 0.69
    assert {point["gpu_bytes"] for point in watched.points} == {None}


def test_a_long_block_has_wider_steps_and_loses_no_peak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_monitor, "_EVERY_SECONDS", 1e-4)
    monkeypatch.setattr(memory_monitor, "_MOST_POINTS", 12)
    with MemoryMonitor() as watched:
        _hold(0.1)
        time.sleep(0.4)
    assert 4 <= len(watched.points) <= 12
    bytes_ = [point["resident_bytes"] for point in watched.points]
    assert max(bytes_) - bytes_[0] > 0.9 * _BYTES
    seconds = [point["seconds"] for point in watched.points]
    assert seconds == sorted(seconds)


class _Scripted(MemoryMonitor):
    """Given its readings, without a clock: the first and last moment's, and those between."""

    def __init__(self, readings: list[dict]):
        super().__init__()
        self._left = iter(readings)
        between = iter([False] * (len(readings) - 2))
        self._done = SimpleNamespace(wait=lambda _: next(between, True))
        self.points.append(self._read())
        self._watch()
        self.points.append(self._read())

    def _read(self) -> dict:
        return next(self._left)


@pytest.mark.parametrize("count", [2, 3, 11, 12, 13, 40, 41, 100, 333, 1000])
def test_each_point_is_the_most_since_the_one_before(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_monitor, "_MOST_POINTS", 12)
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
    # But for what is left over at the end, steps are of one width.
    assert max(steps) <= 2 * min(steps[:-2], default=count)


def test_a_block_that_fails_ends_the_watch():
    with pytest.raises(KeyError), MemoryMonitor() as watched:
        raise KeyError
    assert not watched._thread.is_alive()
    assert len(watched.points) >= 2
