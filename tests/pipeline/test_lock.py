"""A lock between processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.pipeline.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from needlework.pipeline.lock import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / "folder" / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"^another run$"), locked(path, "another run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with locked(path, "another run"):
        pass


def test_an_error_releases_it(tmp_path: Path):
    with pytest.raises(KeyError), locked(tmp_path / "lock", "busy"):
        raise KeyError
    with locked(tmp_path / "lock", "busy"):
        pass
