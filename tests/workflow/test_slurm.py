"""The workflow under a real Slurm, by the profile that users get."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_node
import yaml
from conftest import Project, copy_project

pytestmark = [pytest.mark.workflow, pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

PROFILE = yaml.safe_load(Path("profiles/slurm/config.yaml").read_text())


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    try:
        slurm_node.up()
    except RuntimeError as error:
        pytest.fail(str(error))
    yield
    slurm_node.down()


@pytest.fixture(scope="module")
def under_slurm(slurm, finished: Project, tmp_path_factory: pytest.TempPathFactory):
    """`finished` again, every job through Slurm: the project, and what Slurm knows of its jobs."""
    project = copy_project(tmp_path_factory.mktemp("slurm") / "project")
    experiment = yaml.safe_load((finished.root / "small.yaml").read_text())
    # A third of the jobs: each takes seconds to be queued and seen to end.
    del experiment["systems"]["sketchwalk"], experiment["tasks"]["niah"]
    run = project.snakemake(
        *("--workflow-profile", "profiles/slurm", "--configfile", project.write(experiment)),
        *("--retries", "0", "--latency-wait", "20"),
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return project, slurm_node.jobs(project.root)


def rule_of(job: dict[str, str]) -> str:
    return re.match(r"rule_([a-z_]+?)(_wildcards.*)?$", job["Comment"]).group(1)


def records(project: Project, rule: str) -> int:
    """Jobs of `rule` that left a log, one each."""
    return len(list(project.root.glob(f"results/small/logs/{rule}/**/*.log"))) or len(
        list(project.root.glob(f"results/small/logs/{rule}.log"))
    )


@pytest.mark.timeout(900)
def test_every_job_but_local_ones_ran_under_slurm(under_slurm):
    project, jobs = under_slurm
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    ran = Counter(map(rule_of, jobs))
    assert ran == {rule: records(project, rule) for rule in ran}
    assert ran["evaluate_system"] == 6
    logs = {path.relative_to(project.root / "results/small/logs").parts[0].removesuffix(".log")
            for path in project.root.glob("results/small/logs/**/*.log")}
    assert set(ran) == logs
