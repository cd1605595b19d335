"""Run one job in several processes: launch them, collect their logs, end them with the parent."""

import ctypes
import json
import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
LOG_PREFIX = "needlework| "
"""Marks the lines of a process that go to the job's log."""


def run_processes(
    module: str,
    job: dict[str, Any],
    folder: str | Path,
    count: int,
    launcher: Sequence[str] = (),
) -> None:
    """Run `python -m module FILE` in `count` processes, log their lines, and wait for them.

    Args:
        module: a module whose `__main__` reads FILE.
        job: content of FILE, written to `folder`/job.json.
        folder: created if missing.
        count: number of processes.
        launcher: module and arguments that launch the processes; default: torchrun on this machine.

    Raises:
        ValueError: a process reported an error that the user can fix, or was killed.
        RuntimeError: a process failed otherwise; its output is in the log.
    """
    path = Path(folder) / "job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job))
    error = error_file(path)
    error.unlink(missing_ok=True)
    launcher = launcher or ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, "-m", *launcher, "-m", module, str(path)]
    output: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=exit_with_parent,
    ) as process:
        for line in process.stdout or ():
            if line.startswith(LOG_PREFIX):
                _log.info(line.removeprefix(LOG_PREFIX).rstrip())
            else:
                output.append(line)
    if process.returncode != 0:
        if error.is_file():
            raise ValueError(error.read_text())
        if any("SIGKILL" in line for line in output):
            raise ValueError(
                f"one of {count} processes was killed, probably because memory ran out; give the "
                "job more memory and run again: finished work is kept"
            )
        _log.error("".join(output))
        raise RuntimeError(f"one of {count} processes failed with exit code {process.returncode}")


def exit_with_parent() -> None:
    """Have Linux kill this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def error_file(job: Path) -> Path:
    """File where a process of `job` writes an error message for the user."""
    return job.with_name("error.txt")


def log_to_parent(is_main: bool) -> None:
    """Print log records for the parent's log; processes other than the main one log errors only."""
    logging.basicConfig(
        level=logging.INFO if is_main else logging.ERROR, format=f"{LOG_PREFIX}%(message)s"
    )
