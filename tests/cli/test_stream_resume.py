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
from support.paths import ROOT, TINY
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

from needlework.cli.app import app

pytestmark = pytest.mark.slow

TOKENS = 1600
# The command, saving after each chunk.
COMMAND = """
from needlework.cli.app import app
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint

StreamCheckpoint.__init__.__defaults__ = (0.0,)
app()
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.random.default_rng(0).integers(3, 900, TOKENS).astype(np.uint16).tofile("ids.bin")


def arguments(folder: str) -> list[str]:
    options = ["--chunk-size", "32", "--tokens", str(TOKENS), "--output", folder]
    return ["stream", "ids.bin", "--model", str(TINY), *options]


def run(folder: str) -> tuple[str, int]:
    """The line with the perplexity, and the number of tokens that the model read."""
    read = 0

    def count(module, args):
        nonlocal read
        if isinstance(module, nn.Embedding):
            read += args[0].numel()

    hook = register_module_forward_pre_hook(count)
    try:
        done = CliRunner().invoke(app, arguments(folder), catch_exceptions=False)
    finally:
        hook.remove()
    assert done.exit_code == 0
    return done.stdout.splitlines()[0], read


def test_a_killed_run_resumes_after_its_last_saved_chunk():
    line, read = run("whole")
    killed = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments("killed")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    state = Path("killed/state")
    while not state.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -9
    assert not Path("killed/stream.csv").exists()
    with safe_open(state, framework="np") as file:
        at = json.loads(file.metadata()["checkpoint"])["at"]
    assert 0 < at < TOKENS
    again, read_again = run("killed")
    assert again == line
    # The first run also checks on a few tokens that chunks equal one pass.
    assert TOKENS - at <= read_again <= read - at
    for name in ("chunks.parquet", "positions.parquet"):
        tables = [pl.read_parquet(Path(folder) / name) for folder in ("whole", "killed")]
        assert tables[0].equals(tables[1])
    assert Path("killed/stream.csv").read_bytes() == Path("whole/stream.csv").read_bytes()
    assert not state.exists()
