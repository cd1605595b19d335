"""A whole model of the hub, at a revision: opened over HTTP, and on record with its commit."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from support.hub_server import Hub, commit_of, serving
from support.project_copy import Project
from support.random_checkpoints import save_checkpoint

pytestmark = pytest.mark.workflow


def test_answers_of_a_revision_are_on_record_with_its_commit(project: Project, tmp_path: Path):
    whole = save_checkpoint(tmp_path / "v1", "llama")
    tiny = project.root / "resources" / "needlework-tiny"
    systems = {name: {"model": name} for name in ("here", "fetched", "latest")}
    name = project.write(
        {
            "experiment": "small",
            "models": {
                "here": {"path": str(whole)},
                "fetched": {"path": "nobody/tiny", "revision": "v1"},
                "latest": {"path": "nobody/tiny"},
            },
            "systems": systems,
            "tasks": {"passkey": {"type": "passkey"}},
            "lengths": [128],
            "samples": 2,
        }
    )
    tables = {
        system: f"results/small/predictions/{system}.parquet" for system in ("here", "fetched")
    }
    samples = {s: f"results/small/samples/{s}/passkey/128.parquet" for s in systems}
    command = [sys.executable, "-m", "snakemake", "--configfile", name, "--cores", "1", "--"]
    with serving(Hub({"tiny": {"main": tiny, "v1": whole}})) as hub:
        done = subprocess.run(
            [*command, *tables.values(), *samples.values()],
            cwd=project.root,
            env={**hub.environment(tmp_path / "cache"), "PYTHONPATH": str(project.root)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {s: pl.read_parquet(project.root / path).drop("system") for s, path in tables.items()}
    assert found["fetched"].equals(found["here"])

    def commits(path: str) -> dict[str, str]:
        return json.loads((project.root / f"{path}.provenance.json").read_text())["hub"]

    assert commits(tables["here"]) == commits(samples["here"]) == {}
    assert commits(tables["fetched"]) == {"nobody/tiny": commit_of("v1")}
    assert commits(samples["fetched"]) == {"nobody/tiny": commit_of("v1")}
    assert commits(samples["latest"]) == {"nobody/tiny": commit_of("main")}
    printed = project.needlework("lineage", tables["fetched"]).stdout
    assert f"nobody/tiny at {commit_of('v1')}" in printed
