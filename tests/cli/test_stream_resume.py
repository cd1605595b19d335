"""`needlework stream`: resuming a run that was killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from support.paths import ROOT

pytestmark = pytest.mark.slow

TOKENS = 1600
# The command with another saving interval, which also counts the tokens that the model reads.
COMMAND = """
import sys
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from needlework.cli.app import app
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint

StreamCheckpoint.__init__.__defaults__ = (float(sys.argv.pop()),)
read = 0

def count(module, args):
    global read
    if isinstance(module, nn.Embedding):
        read += args[0].numel()

register_module_forward_pre_hook(count)
app(standalone_mode=False)
print("read", read)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.random.default_rng(0).integers(3, 900, TOKENS).astype(np.uint16).tofile("ids.bin")


def start(folder: str, seconds: str = "60") -> subprocess.Popen:
    model = str(ROOT / "resources" / "needlework-tiny")
    arguments = [
        "ids.bin",
        "--model",
        model,
        "--chunk-size",
        "32",
        "--tokens",
        str(TOKENS),
        "--output",
        folder,
        seconds,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "stream", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, int]:
    """The line with the perplexity, and the number of tokens that the model read."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    lines = stdout.splitlines()
    return lines[0], int(lines[-1].split()[1])


def test_a_killed_run_resumes_after_its_last_saved_chunk():
    line, read = finish(start("whole"))
    killed, state = start("killed", seconds="0"), Path("killed/state")
    while not state.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -9
    assert not Path("killed/stream.csv").exists()
    with safe_open(state, framework="np") as file:
        at = json.loads(file.metadata()["checkpoint"])["at"]
    assert 0 < at < TOKENS
    again, read_again = finish(start("killed"))
    assert again == line
    # The first run also checks on a few tokens that chunks equal one pass.
    assert TOKENS - at <= read_again <= read - at
    for name in ("chunks.parquet", "positions.parquet"):
        tables = [pl.read_parquet(Path(folder) / name) for folder in ("whole", "killed")]
        assert tables[0].equals(tables[1])
    assert Path("killed/stream.csv").read_bytes() == Path("whole/stream.csv").read_bytes()
    assert not state.exists()
