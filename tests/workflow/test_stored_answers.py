"""Whole runs that take answers from the store, and generate only those that are missing."""

import json
from pathlib import Path

import polars as pl
import pytest
from support.project_copy import Project

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]


def answer(project: Project, experiment: dict, system: str = "random") -> tuple[pl.DataFrame, int]:
    """The predictions of a system, and how many of them the run generated."""
    table = f"results/{experiment['experiment']}/predictions/{system}.parquet"
    name = project.write(experiment)
    done = project.snakemake("--configfile", name, "--cores", "2", "--", table)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(Path(project.root / f"{table}.provenance.json").read_text())
    return pl.read_parquet(project.root / table), record["answers"]["generated"]


def test_only_answers_that_are_missing_are_generated(project: Project, small_experiment: dict):
    experiment = small_experiment | {"lengths": [128], "depths": [50]}
    first, generated = answer(project, experiment)
    assert generated == len(first) == 4

    more, generated = answer(project, experiment | {"samples": 6})
    assert (generated, len(more)) == (2, 6)
    assert more[:4].equals(first)

    fewer, generated = answer(project, experiment | {"samples": 3})
    assert generated == 0
    assert fewer.equals(first[:3])

    longer, generated = answer(project, experiment | {"lengths": [128, 192]})
    assert generated == 4
    assert longer.filter(length=128).equals(first)

    systems = {"dense": {"model": "base"}, "renamed": small_experiment["systems"]["random"]}
    changed = experiment | {"experiment": "other", "systems": systems}
    renamed, generated = answer(project, changed, "renamed")
    assert generated == 0
    assert renamed.drop("system").equals(first.drop("system"))

    systems["renamed"]["attention"]["density"] = 0.5
    denser, generated = answer(project, changed, "renamed")
    assert generated == 4
    assert not denser["prefill_density"].equals(first["prefill_density"])

    made = project.needlework("lineage", "results/other/predictions/renamed.parquet").stdout
    assert "rule evaluate_system" in made
    assert "4 answers generated, others stored" in made

    listed = project.needlework("answers").stdout.splitlines()
    assert len(listed) == 3
    assert listed[-1].startswith("stored: answers 14, systems 2, ")
