"""Streams in the pipeline: from text to tables and figures, and after a kill."""

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from support.project_copy import Project

from needlework.config.opening import ModelSpec
from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.models.checkpoint import open_model

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]

RESULTS = "results/small"
WINDOW = {"type": "window", "dense_layers": 0, "block_size": 16, "recent_tokens": 64}
STREAMS = {
    "sentences": {
        "tokens": 700,
        "shards": 2,
        "systems": {
            "dense": {"chunk_size": 128, "overlap": 64},
            "near": {"model": "base", "attention": WINDOW},
        },
    }
}
TARGETS = [
    f"{RESULTS}/{name}"
    for name in ("streams.csv", "figures/stream_perplexity.svg", "figures/stream_cost.svg")
]


def test_every_system_of_a_stream_reads_it(project: Project, small_experiment: dict):
    name = project.write(small_experiment | {"streams": STREAMS})
    run = project.snakemake("--configfile", name, "--cores", "2", *TARGETS)
    assert run.returncode == 0, run.stdout + run.stderr
    root = project.root / RESULTS
    whole = pl.read_csv(root / "streams.csv")
    assert whole.select("system", "mode", "shards", "tokens").rows() == [
        ("dense", "strided", 2, 2 * 699),
        ("near", "state", 2, 2 * 699),
    ]
    model, _ = open_model(ModelSpec(path=project.root / "resources/needlework-tiny"))
    losses = []
    for shard in (0, 1):
        ids = np.load(root / f"tokens/base/sentences/{shard}.npy")
        assert len(ids) == 700
        results = StreamingEvaluator(model, 128, 64, verbose=False).evaluate_streaming(ids)
        losses.append(results["loss"])
        chunks = pl.read_parquet(root / f"streams/dense/sentences/{shard}.parquet")
        loss = (chunks["loss"] * chunks["tokens"]).sum() / chunks["tokens"].sum()
        assert loss == pytest.approx(results["loss"], rel=1e-5)
    assert losses[0] != losses[1]
    assert whole["perplexity"][0] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    positions = pl.read_parquet(root / "stream_positions.parquet")
    assert positions.group_by("system").agg(pl.col("tokens").sum())["tokens"].to_list() == [
        2 * 699,
        2 * 699,
    ]
    # Another overlap reruns one system; the tokens stay.
    changed = {**STREAMS["sentences"]["systems"], "dense": {"chunk_size": 128, "overlap": 32}}
    streams = {"sentences": {**STREAMS["sentences"], "systems": changed}}
    project.write(small_experiment | {"streams": streams})
    planned = project.snakemake("--configfile", name, "-n", TARGETS[0])
    assert planned.returncode == 0
    output = planned.stdout + planned.stderr
    assert "system=dense, stream=sentences" in output
    assert "system=near" not in output
    assert "rule tokenize_stream" not in output


def test_a_killed_stream_resumes(project: Project, small_experiment: dict):
    streams = {"long": {"tokens": 4000, "chunk_size": 16, "systems": {"dense": {}}}}
    name = project.write(small_experiment | {"streams": streams})
    script = project.root / "needlework/evaluation/streaming/checkpoint.py"
    script.write_text(
        script.read_text().replace("SAVE_EVERY_SECONDS = 60.0", "SAVE_EVERY_SECONDS = 0.2")
    )
    target = f"{RESULTS}/streams/dense/long/0.parquet"
    environment = {**os.environ, "PYTHONPATH": str(project.root), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "snakemake", "--configfile", name, "--cores", "1", target]
    run = subprocess.Popen(
        command, cwd=project.root, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    saved = project.root / f"{RESULTS}/streams/dense/long/.state-0.parquet"
    while not saved.exists():
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (project.root / target).exists()
    project.snakemake("--configfile", name, "--unlock")
    again = project.snakemake("--configfile", name, "--cores", "1", target)
    assert again.returncode == 0, again.stdout + again.stderr
    log = project.root / f"{RESULTS}/logs/stream_perplexity/dense/long/0.log"
    assert "resuming at document 0, token" in log.read_text()
    assert not saved.exists()
    table = pl.read_parquet(project.root / target)
    assert table["tokens"].sum() == 3999
    assert table["first_token"].to_list() == [1 + 16 * i for i in range(250)]
