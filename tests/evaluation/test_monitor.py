"""Memory over time: no peak is missed, and a long block has no more points than a short one."""

import gc
import time

import numpy as np
import pytest

from needlework.evaluation import monitor
from needlework.evaluation.monitor import MemoryMonitor

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
    monkeypatch.setattr(monitor, "_EVERY_SECONDS", 1e-4)
    monkeypatch.setattr(monitor, "_MOST_POINTS", 12)
    with MemoryMonitor() as watched:
        _hold(0.1)
        time.sleep(0.4)
    assert 4 <= len(watched.points) <= 12
    bytes_ = [point["resident_bytes"] for point in watched.points]
    assert max(bytes_) - bytes_[0] > 0.9 * _BYTES
    seconds = [point["seconds"] for point in watched.points]
    assert seconds == sorted(seconds)


def test_a_block_that_fails_ends_the_watch():
    with pytest.raises(KeyError), MemoryMonitor() as watched:
        raise KeyError
    assert not watched._thread.is_alive()
    assert len(watched.points) >= 2
