"""The workflow under a real Slurm, by the profile that users get, against a run on this machine."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml
from support import slurm_node
from support.paths import ROOT
from support.project_copy import Project, copy_project

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slurm,
    pytest.mark.timeout(1500),
]

PROFILE = "profiles/slurm"
RESULTS = "results/small"
JOBS = {
    "record_experiment": 1,
    "plan_experiment": 1,
    "generate_samples": 2,
    "generate_finetune_data": 1,
    "check_training_rows": 1,
    "finetune_model": 1,
    "evaluate_system": 2,
    "score_predictions": 2,
    "summarize_scores": 1,
    "find_effective_length": 1,
    "compare_systems": 1,
    "compare_speed": 1,
    "show_tables": 1,
    "plot_heatmap": 1,
    "plot_accuracy": 1,
    "plot_effective_length": 1,
    "plot_cost": 1,
    "plot_memory": 1,
    "plot_training": 1,
    "plot_training_cost": 1,
    "plot_finetuning": 1,
}
EQUAL = ["samples", "finetune_data", "models", "training"]
"""Folders that equal inputs, config and code make equal to the byte."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with slurm_node.node():
        yield


@pytest.fixture(scope="module")
def run(slurm, finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two systems and one task of `finished`, from the start, every job through Slurm."""
    project = copy_project(tmp_path_factory.mktemp("slurm") / "project")
    experiment = yaml.safe_load((finished.root / "small.yaml").read_text())
    experiment["systems"] = {name: experiment["systems"][name] for name in ("dense", "infini")}
    experiment["tasks"] = {"passkey": experiment["tasks"]["passkey"]}
    del experiment["gates"]
    name = project.write(experiment)
    done = project.snakemake(
        *("--workflow-profile", PROFILE, "--configfile", name),
        # A job that fails is to fail the test, not to be tried again; nobody else queues here.
        *("--retries", "0", "--slurm-init-seconds-before-status-checks", "2"),
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture(scope="module")
def jobs(run: Project) -> list[dict[str, str]]:
    return slurm_node.jobs(run.root)


def rule(job: dict[str, str]) -> str:
    """The rule that Snakemake's comment on a job names."""
    return re.fullmatch(r"rule_([a-z_]+?)(_wildcards_.+)?", job["Comment"]).group(1)


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of the files below `folder`, without their records."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith(".provenance.json")
    }


def test_every_job_ran_under_slurm(jobs):
    assert Counter(map(rule, jobs)) == JOBS
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}


def test_jobs_that_run_a_model_asked_for_a_gpu(jobs):
    wanted = yaml.safe_load((ROOT / PROFILE / "config.yaml").read_text())
    rules = {name for name, resources in wanted["set-resources"].items() if "gpu" in resources}
    got = Counter(rule(job) for job in jobs if job.get("TresPerJob") == "gres:gpu:1")
    assert got == {name: n for name, n in JOBS.items() if name in rules}
    assert sum("TresPerJob" in job for job in jobs) == got.total()
    assert {"evaluate_system", "finetune_model"} <= rules


def test_results_are_those_of_this_machine(run: Project, finished: Project):
    for folder in EQUAL:
        slurm = content(run.root / RESULTS / folder)
        here = content(finished.root / RESULTS / folder)
        assert slurm, folder
        assert [path for path in slurm if slurm[path] != here.get(path)] == []
    for folder in ("predictions", "scores"):
        for table in sorted((run.root / RESULTS / folder).glob("*.parquet")):
            here = pl.read_parquet(finished.root / RESULTS / folder / table.name)
            assert pl.read_parquet(table).equals(here.filter(task="passkey")), table


def test_the_summary_is_that_of_this_machine(run: Project, tmp_path: Path):
    here = run.copy(tmp_path / "here")
    tables = [f"{RESULTS}/summary.parquet", f"{RESULTS}/summary.csv"]
    for table in tables:
        (here.root / table).unlink()
    done = here.snakemake("--configfile", "small.yaml", "--cores", "1", "--", *tables)
    assert done.returncode == 0, done.stdout + done.stderr
    for table in tables:
        assert (here.root / table).read_bytes() == (run.root / table).read_bytes()


def test_a_local_run_has_nothing_left_to_do(run: Project):
    dry = run.snakemake("--dry-run", "--configfile", "small.yaml")
    assert "Nothing to be done" in dry.stdout + dry.stderr, dry.stdout + dry.stderr
    verified = run.needlework("verify", RESULTS)
    assert verified.returncode == 0, verified.stdout + verified.stderr
