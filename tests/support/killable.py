"""Processes of their own that can be killed; torch is imported once for all of them."""

import multiprocessing
import signal
import time
from pathlib import Path

# Forked from a process that has done nothing yet: polars and torch have threads that forks lose.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["needlework.training.distill.gates", "needlework.training.pretrain"]
)

Process = _context.Process
Pool = _context.Pool


def kill_when(training, folder: Path, there: str) -> None:
    """Train in a process of its own, and kill -9 it once a path like `there` is there."""
    process = Process(target=training, args=[folder])
    process.start()
    while not list(folder.glob(there)):
        assert process.is_alive(), "it ended before it was to be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
