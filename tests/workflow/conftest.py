"""Whole runs: a copy of the project in a folder of its own, and a small experiment for it."""

import fcntl
import os
from pathlib import Path

import pytest
from support.project_copy import Project, copy_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path / "project")


@pytest.fixture
def small_experiment() -> dict:
    """An experiment of a minute, to be changed and written: `project.write(small_experiment)`."""
    return _small()


def _small() -> dict:
    random = {"type": "random", "block_size": 16, "density": 0.25, "dense_layers": 1}
    return {
        "experiment": "small",
        "seed": 7,
        "models": {"base": {"path": "resources/needlework-tiny"}},
        "systems": {
            "dense": {"model": "base"},
            "random": {"model": "base", "attention": random},
        },
        "baseline": "dense",
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [128, 256],
        "depths": [0, 50],
        "samples": 4,
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small experiment with a second task, SketchWalk, SeerAttention and an Infini model, gates
    and model trained for two steps, run to its end on this machine and reported in report.html, as
    `small.yaml`. Shared: copy it to change it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "finished", base / "finished.done"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        project = Project(folder)
        if not done.exists():
            copy_project(folder)
            name = project.write(_with_fine_tuning(_small()))
            run = project.snakemake("--configfile", name, "--cores", "2", timeout=900)
            assert run.returncode == 0, run.stdout + run.stderr
            report = project.snakemake("--configfile", name, "--report", "report.html")
            assert report.returncode == 0, report.stdout + report.stderr
            done.touch()
    return project


def _with_fine_tuning(experiment: dict) -> dict:
    recipe = {"data": "rows", "steps": 2, "batch_size": 2, "sequence_length": 192, "log_every": 1}
    experiment["finetune_data"] = {"rows": {"type": "passkey", "examples": 8, "length": 192}}
    infini = {"type": "infini", "segment_length": 64}
    walk = {"type": "sketchwalk", "block_size": 16, "density": 0.25, "dense_layers": 1}
    few = {"data": ["of_task"], "sequence_length": 192, "steps": 2, "batch_size": 1}
    experiment["finetune_data"]["of_task"] = {
        "type": "task",
        "task": "passkey",
        "examples": 4,
        "length": 192,
    }
    experiment["gates"] = {"own": {"model": "base", "block_size": 16, "distill": few}}
    seer = {"type": "seer", "gates": "own", "block_size": 16, "density": 0.25}
    experiment["models"]["infini"] = {"base": "base", "attention": infini, "finetune": recipe}
    experiment["systems"]["sketchwalk"] = {"model": "base", "attention": walk}
    experiment["systems"]["seer"] = {"model": "base", "attention": seer}
    experiment["systems"]["infini"] = {"model": "infini"}
    experiment["tasks"]["niah"] = {"type": "niah_single_1", "max_new_tokens": 6}
    return experiment
