"""The workflow under a real Slurm, by the profile that users get, against a run on this machine."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_node
import yaml
from project_copy import Project, copy_project

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slurm,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(1500),
]

PROFILE = "profiles/slurm"
RESULTS = "results/small"
# What equal inputs, config and code make equal to the byte; the rest is measured or says when.
EQUAL = [
    "experiment.yaml",
    *("finetune_data", "models", "training", "samples", "predictions", "scores"),
    *("summary.parquet", "summary.csv", "comparison.json", "comparison.md", "comparison.csv"),
    *("figures/heatmap", "figures/accuracy.html", "figures/accuracy.svg", "figures/accuracy.png"),
    *("figures/training.html", "figures/training.svg", "figures/training.png"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    try:
        slurm_node.up()
    except RuntimeError as error:
        pytest.fail(str(error))
    yield
    slurm_node.down()


@pytest.fixture(scope="module")
def run(slurm, finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`finished` again, from the start, every job through Slurm."""
    project = copy_project(tmp_path_factory.mktemp("slurm") / "project")
    name = project.write(yaml.safe_load((finished.root / "small.yaml").read_text()))
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


def files(root: Path, name: str) -> dict[str, bytes]:
    """Content of the files of a result, or below a folder of results, without their records."""
    path = root / RESULTS / name
    found = path.rglob("*") if path.is_dir() else [path]
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in found
        if file.is_file() and not file.name.endswith(".provenance.json")
    }


def test_every_job_ran_under_slurm(run: Project, jobs, finished: Project):
    logs = finished.root / RESULTS / "logs"
    expected = Counter(
        log.relative_to(logs).parts[0].removesuffix(".log") for log in logs.rglob("*.log")
    )
    assert Counter(map(rule, jobs)) == expected
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}


def test_jobs_that_run_a_model_asked_for_a_gpu(jobs):
    wanted = yaml.safe_load((Path(__file__).parents[2] / PROFILE / "config.yaml").read_text())
    rules = {name for name, resources in wanted["set-resources"].items() if "gpu" in resources}
    assert {rule(job) for job in jobs if job.get("TresPerJob") == "gres:gpu:1"} == (
        rules & {rule(job) for job in jobs}
    )
    assert [job["Comment"] for job in jobs if "TresPerJob" in job and rule(job) not in rules] == []
    assert {"evaluate_system", "finetune_model"} <= rules


def test_results_are_those_of_this_machine(run: Project, finished: Project):
    for name in EQUAL:
        here, slurm = files(finished.root, name), files(run.root, name)
        assert here, name
        assert here.keys() == slurm.keys()
        assert [path for path in here if here[path] != slurm[path]] == []


def test_a_local_run_has_nothing_left_to_do(run: Project):
    dry = run.snakemake("--dry-run", "--configfile", "small.yaml")
    assert "Nothing to be done" in dry.stdout + dry.stderr, dry.stdout + dry.stderr
    verified = run.needlework("verify", RESULTS)
    assert verified.returncode == 0, verified.stdout + verified.stderr
