"""A copy of the project, apart from the tree that the tests run in."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from support.paths import ROOT

# What a CI system, another Snakemake or another Slurm job would leave in the environment.
_NOISE = ("CI", "GITHUB_", "SNAKEMAKE_", "SLURM_", "SBATCH_", "PYTEST_", "PYTHON")


@dataclass(frozen=True)
class Project:
    """A copy of the project; commands run in it, and import needlework from it."""

    root: Path

    def python(self, *args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run Python with `args`, its output as text; the status is the caller's to check."""
        return subprocess.run(
            [sys.executable, *args],
            cwd=self.root,
            env=_environment(self.root),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Python with `args`, left to itself."""
        return subprocess.Popen(
            [sys.executable, *args],
            cwd=self.root,
            env=_environment(self.root),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def snakemake(self, *args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """`snakemake` with `args`, such as "--configfile", "small.yaml", "--cores", "2"."""
        return self.python("-m", "snakemake", *args, timeout=timeout)

    def needlework(self, *args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """The `needlework` command with `args`."""
        return self.python(
            "-c", "from needlework.cli.app import main; main()", *args, timeout=timeout
        )

    def write(self, experiment: dict, name: str = "small.yaml") -> str:
        """Write an experiment file into the project; its name."""
        (self.root / name).write_text(yaml.safe_dump(experiment, sort_keys=False))
        return name

    def copy(self, folder: Path) -> "Project":
        """The whole project, results and .snakemake among it, with its times, in `folder`."""
        shutil.copytree(self.root, folder, symlinks=True)
        return Project(folder)


def _environment(root: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOISE)}
    # An editable install names the tests' own tree; PYTHONPATH goes before it.
    return {**environment, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def copy_project(folder: Path) -> Project:
    """The project's own files, as they stand now, in `folder`; nothing made, no links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in set(listed.stdout.split("\0")) - {""}:
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return Project(folder)
