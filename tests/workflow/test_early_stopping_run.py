"""Early stopping in a whole run: which systems stop, and what is recorded."""

import json
import shutil

import polars as pl
import pytest

pytestmark = pytest.mark.workflow

LENGTHS = (128, 256, 512)


@pytest.fixture
def finished_run(project, small_experiment):
    """A finished run of a dense system, a model of 400 positions, and a system that finds nothing.

    Lengths are not written in ascending order.
    """
    short = project.root / "short"
    shutil.copytree(project.root / "resources" / "needlework-tiny", short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 400}))
    blind = {"type": "window", "block_size": 16, "recent_tokens": 8, "dense_layers": 0}
    small_experiment["models"]["short"] = {"path": "short"}
    small_experiment["systems"] = {
        "dense": {"model": "base"},
        "short": {"model": "short"},
        "blind": {"model": "base", "attention": blind},
    }
    small_experiment |= {"lengths": [512, 128, 256], "early_stopping": True}
    name = project.write(small_experiment)
    run = project.snakemake("--configfile", name, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    return project


def test_systems_stop_with_a_reason_while_others_continue(finished_run):
    results = finished_run.root / "results" / "small"
    summary = pl.read_parquet(results / "summary.parquet")
    gaps = summary.filter(pl.col("skip_reason").is_not_null()).sort("system")
    assert gaps.select("system", "length").rows() == [("blind", 512), ("short", 512)]
    blind, short = gaps["skip_reason"].to_list()
    assert blind.startswith("accuracy below min_accuracy: accuracy ")
    assert " at 128 and 256, below min_accuracy 10 %" in blind
    assert short.startswith("length refused: ")
    assert short.endswith("tokens at 512, beyond the model's 400 positions")
    reached = summary.filter(pl.col("skip_reason").is_null(), pl.col("system") == "dense")
    assert sorted(set(reached["length"])) == list(LENGTHS)
    compared = json.loads((results / "comparison.json").read_text())
    assert all(row["length"] < 512 for row in compared)
    drawn = (results / "figures" / "heatmap" / "passkey.svg").read_text()
    assert "beyond the model's 400 positions" in drawn
    planned = pl.read_csv(results / "plan.csv")
    assert planned.select("system", "length").height == 9
    again = finished_run.snakemake("--configfile", "small.yaml", "--cores", "2", "-n")
    assert "Nothing to be done" in again.stdout + again.stderr
    verified = finished_run.needlework("verify", "results/small")
    assert verified.returncode == 0, verified.stdout
