"""A model shared out over processes, in a whole run that is killed and run again."""

import json
import subprocess
import time

import polars as pl
import psutil
import pytest
from support.random_checkpoints import save_checkpoint

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

PREDICTIONS = "results/small/predictions/{}.parquet"
SAMPLES = 6


def ranks(run: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a model, those that started them left out."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if (
                "needlework.evaluation.generation.answers" in process.cmdline()
                and process.environ().get("RANK")
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_killed_process_ends_the_job_and_what_it_answered_stays(project, small_experiment):
    save_checkpoint(project.root / "mixtral", "mixtral")
    walk = {"type": "sketchwalk", "block_size": 16, "density": 0.4, "dense_layers": 0}
    small_experiment["models"] = {
        "whole": {"path": "mixtral", "dp": 2},
        "shared": {"path": "mixtral", "tp": 2, "ep": 2},
    }
    small_experiment["systems"] = {
        name: {"model": name, "attention": walk} for name in small_experiment["models"]
    }
    small_experiment["tasks"]["passkey"]["max_new_tokens"] = 24
    small_experiment |= {"baseline": "whole", "lengths": [256], "samples": SAMPLES}
    arguments = ["--configfile", project.write(small_experiment), "--cores", "2", "--"]
    arguments.append(PREDICTIONS.format("shared"))

    def kept() -> list[str]:
        """Lines of answers that are on disk."""
        segments = (project.root / "results/.answers").rglob("*.jsonl")
        return [line for segment in segments for line in segment.read_text().splitlines()]

    run = project.start("-m", "snakemake", *arguments)
    while not kept():
        assert run.poll() is None
        time.sleep(0.02)
    processes = ranks(run)
    assert len(processes) == 2
    processes[1].kill()
    assert run.wait(120) != 0
    assert not psutil.wait_procs(processes, timeout=10)[1]
    log = (project.root / "results/small/logs/evaluate_system/shared.log").read_text()
    assert "evaluate_system: one of 2 processes was killed" in log
    assert "Traceback" not in log
    entries = [json.loads(line.partition(" ")[2])[1] for line in kept()]
    assert 1 <= len(entries) < SAMPLES

    again = project.snakemake(*arguments, PREDICTIONS.format("whole"))
    assert again.returncode == 0, again.stdout + again.stderr
    measured = project.root / PREDICTIONS.format("shared").replace("predictions", "measurements")
    seconds = pl.read_parquet(measured)["prefill_seconds"].to_list()
    measured_before = [entry["measured"]["prefill_seconds"] for entry in entries]
    assert seconds[: len(entries)] == measured_before
    shared, whole = (
        pl.read_parquet(project.root / PREDICTIONS.format(name)).drop("system", "cache_bytes")
        for name in ("shared", "whole")
    )
    assert shared.equals(whole)
