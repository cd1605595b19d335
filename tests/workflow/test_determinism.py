"""The same experiment in another folder gives the same bytes, measurements left out."""

import shutil
from pathlib import Path

import pytest
from support.project_copy import Project

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]

RESULTS = "results/small"
# Seconds and bytes of memory, what is drawn from them, and records of when and where.
MEASURED = (
    *("measurements/", "benchmarks/", "logs/"),
    *("comparison_speed.", "tables.html", "figures/cost.", "figures/memory."),
    *("figures/stream_cost.", "figures/training_cost."),
)
# Of each kind at least one, so that nothing is equal because it is not there.
KINDS = (
    "samples/base/passkey/128.parquet",
    "finetune_data/base/rows.parquet",
    "models/infini/model.safetensors",
    "training/infini.parquet",
    "gates/own/gates.safetensors",
    "gates/own/gates.json",
    "training/gates/own.parquet",
    *(
        f"predictions/{system}.parquet"
        for system in ("dense", "random", "sketchwalk", "seer", "infini")
    ),
    "scores/dense.parquet",
    *("summary.parquet", "summary.csv", "needles.parquet", "needles.csv"),
    *("comparison.json", "comparison.md", "comparison.csv"),
    *("effective_length.csv", "mean_scores.csv", "figures/effective_length.svg"),
    *("experiment.yaml", "software.csv", "plan.csv"),
    *(
        f"figures/{name}.{kind}"
        for name in ("heatmap/passkey", "heatmap/niah", "accuracy", "pareto", "density")
        for kind in ("html", "svg", "png")
    ),
    *("figures/training.svg", "figures/finetuning.svg"),
)


def content(project: Project) -> dict[str, bytes]:
    """What every result holds, by its path below the results folder."""
    found = {}
    for path in (project.root / RESULTS).rglob("*"):
        name = path.relative_to(project.root / RESULTS).as_posix()
        if path.is_file() and not name.endswith(".provenance.json"):
            found[name] = path.read_bytes()
    return found


def test_two_runs_in_two_folders_are_equal_to_the_byte(finished: Project, tmp_path: Path):
    made = shutil.ignore_patterns("results", ".snakemake", "__pycache__")
    shutil.copytree(finished.root, tmp_path / "another" / "place", ignore=made)
    other = Project(tmp_path / "another" / "place")
    run = other.snakemake("--configfile", "small.yaml", "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr

    first, second = content(finished), content(other)
    assert set(KINDS) <= first.keys()
    assert first.keys() == second.keys()
    unequal = {name for name in first if first[name] != second[name]}
    assert {name for name in unequal if not name.startswith(MEASURED)} == set()
    # Time does not stand still: what is measured tells the two runs apart.
    assert any(name.startswith("measurements/") for name in unequal)
