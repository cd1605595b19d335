"""Memory that a job of many processes reserves."""

import json
import os
import re

import pytest
from support.project_copy import Project

from needlework.config.parsing.load import read_experiment
from needlework.pipeline.job_resources import CACHE, JobResources

pytestmark = pytest.mark.workflow


def test_processes_of_a_training_are_counted_once(
    project: Project, small_experiment: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    recipe = {"data": "rows", "steps": 2, "batch_size": 4, "processes": 4}
    small_experiment["models"]["tuned"] = {"base": "base", "finetune": recipe}
    small_experiment["finetune_data"] = {"rows": {"type": "passkey"}}
    name = project.write(small_experiment)
    # Weights that are small are not planned.
    os.truncate("resources/needlework-tiny/model.safetensors", 2**26 + 1)
    plan = CACHE / f"plan-{JobResources(read_experiment(name))._key()}.json"
    plan.parent.mkdir(parents=True)
    for planned, reserved in ((77 * 10**9, 77_000), (10**9, 4 * 6000)):
        plan.write_text(json.dumps({"finetune": {"tuned": {"mem_bytes": planned, "seconds": 1.0}}}))
        given = ("-n", "--configfile", name, "--cores", "4")
        done = project.snakemake(*given, "results/small/models/tuned/model.safetensors")
        assert done.returncode == 0, done.stdout + done.stderr
        (mem_mb,) = re.findall(r"rule finetune_model:.*?mem_mb=(\d+)", done.stdout, re.DOTALL)
        assert int(mem_mb) == reserved
