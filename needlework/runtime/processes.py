"""Several processes for one job: started, heard, and ended with the one that started them."""

import ctypes
import json
import logging
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
MARK = "needlework| "
"""Before each line that a process has for the log of the job."""


def start(
    module: str, job: dict[str, Any], folder: str | Path, count: int, launcher: list[str] = ()
) -> None:
    """Run `python -m module FILE` in `count` processes, hand their lines to the log, and wait.

    Args:
        module: a name whose `__main__` reads FILE.
        job: what FILE, `folder`/job.json, holds as JSON.
        folder: made if it is not there.
        count: of processes.
        launcher: module and arguments that start them; none: torchrun, on this machine.

    Raises:
        ValueError: what a process said that the user has to mend, or that one was killed.
        RuntimeError: a process ended otherwise; what it said is in the log.
    """
    path = Path(folder) / "job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job))
    error = error_file(path)
    error.unlink(missing_ok=True)
    launcher = launcher or ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, "-m", *launcher, "-m", module, str(path)]
    rest: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=end_with_parent,
    ) as process:
        for line in process.stdout:
            if line.startswith(MARK):
                _log.info(line.removeprefix(MARK).rstrip())
            else:
                rest.append(line)
    if process.returncode != 0:
        if error.is_file():
            raise ValueError(error.read_text())
        if any("SIGKILL" in line for line in rest):
            raise ValueError(
                f"one of {count} processes was killed, as the system does where memory runs out; "
                "run again, with more memory: what is finished is kept"
            )
        _log.error("".join(rest))
        raise RuntimeError(f"a process of {count} ended with {process.returncode}")


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends, killed or not."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def error_file(job: Path) -> Path:
    """Where a process of `job` leaves the line that the user is to read."""
    return job.with_name("error.txt")


def log_marked(is_main: bool) -> None:
    """Have this process say what it logs to the one that started it; all but the main one only
    what went wrong."""
    logging.basicConfig(
        level=logging.INFO if is_main else logging.ERROR, format=f"{MARK}%(message)s"
    )
