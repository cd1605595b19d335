"""The wheel: an installed needlework runs the workflow in any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.workflow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--ignore-installed", str(wheel)],
        check=True,
    )
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def test_an_installed_wheel_runs_an_experiment_in_an_empty_folder(
    environment: Path, tmp_path: Path
):
    (files,) = environment.glob("lib/python*/site-packages/needlework/_workflow")
    experiment = {
        "experiment": "mine",
        "models": {"base": {"path": str(files / "resources/needlework-tiny")}},
        "systems": {"dense": {"model": "base"}},
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [128],
        "depths": [50],
        "samples": 2,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment))
    done = subprocess.run(
        [environment / "bin/needlework", "run", "mine.yaml", "--cores", "2"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Report: {tmp_path}/results/mine/report.html" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {".snakemake", "mine.yaml", "results"}
