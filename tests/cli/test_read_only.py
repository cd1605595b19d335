"""Results that cannot be written, read by a user who is not root; and ~ on the command line."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT
from typer.testing import CliRunner

from needlework.cli.app import app
from needlework.pipeline.provenance import sha256_file, write_record

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def results() -> Iterator[Path]:
    """A folder of a finished run in which nothing can be written."""
    # Folders of pytest are closed to other users.
    folder = Path(tempfile.mkdtemp())
    (folder / "results/x").mkdir(parents=True)
    files = [folder / name for name in ("source.txt", "results/x/a.csv")]
    for file in files:
        file.write_text(file.name)
    hashes = {str(file.relative_to(folder)): sha256_file(file) for file in files}
    record = {"rule": "summarize", "inputs": {"source.txt": hashes.pop("source.txt")}}
    record |= {"outputs": hashes, "git": None, "code": {"version": "1"}}
    write_record(files[1], record | {"started": "now", "seconds": 1, "device": "cpu"})
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    user = NOBODY if os.geteuid() == 0 else []
    environment = {**os.environ, "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [*user, sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_results_that_cannot_be_written_are_verified(results):
    if as_nobody(results, "-c", "import needlework").returncode:
        pytest.skip("another user cannot read this checkout")
    write = as_nobody(results, "-c", "open('results/x/b', 'w')")
    assert "PermissionError" in write.stderr
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    verified = as_nobody(results, "-m", "needlework", "verify", "results/x")
    assert verified.stdout == "2 files verified: every hash in results/x is valid\n"
    tree = as_nobody(results, "-m", "needlework", "lineage", "results/x/a.csv")
    assert tree.returncode == 0, tree.stderr
    assert "source.txt" in tree.stdout
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_home_folders_are_expanded_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("experiment: [")
    for args in (["check", "~/mine.yaml"], ["run", "~/mine.yaml"], ["plan", "~/mine.yaml"]):
        error = CliRunner().invoke(app, args).exception
        assert str(error).startswith(f"{tmp_path}/mine.yaml:")
    error = CliRunner().invoke(app, ["run", "--configfile=~/mine.yaml"]).exception
    assert str(error).startswith(f"{tmp_path}/mine.yaml:")
