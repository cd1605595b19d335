"""What a run would make, as Snakemake says it."""

from pathlib import Path

from support.paths import ROOT

from needlework.pipeline.runner import due


def test_what_is_due_is_the_same_for_a_dry_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = Path("config/api.yaml")
    found = due(file, ["--forceall"])
    assert Path("results/api/summary.csv") in found
    assert due(file, ["--forceall", "-n"]) == found
