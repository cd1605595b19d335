"""The snakemake command that `needlework run` starts."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.paths import PYTHONPATH

pytestmark = pytest.mark.slow

JOBS = 40
SNAKEFILE = f"""
rule all:
    input: expand("out/{{i}}", i=range({JOBS}))
rule one:
    output: "out/{{i}}"
    shell: "touch {{output}}"
"""


def snakemake(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "needlework.pipeline.snakemake_cli", "--cores", "2", *options],
        cwd=folder,
        env={"PYTHONPATH": PYTHONPATH, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_threads_do_not_grow_with_finished_jobs(tmp_path: Path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    run, threads = snakemake(tmp_path), []
    process = psutil.Process(run.pid)
    while run.poll() is None:
        try:
            threads.append(process.num_threads())
        except psutil.Error:
            break
        time.sleep(0.02)
    assert run.wait() == 0
    assert len(list((tmp_path / "out").iterdir())) == JOBS
    # The command itself has more than 20 by then.
    assert max(threads) < 10


def test_a_failed_run_and_a_wrong_option_have_their_status(tmp_path: Path):
    (tmp_path / "Snakefile").write_text('rule fails:\n    shell: "exit 3"\n')
    assert snakemake(tmp_path).wait() == 1
    wrong = snakemake(tmp_path, "--no-such-option")
    output, _ = wrong.communicate()
    assert wrong.returncode not in (0, 1)
    assert b"--no-such-option" in output
