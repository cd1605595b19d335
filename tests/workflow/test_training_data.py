"""Rows and text of the user's own, through the rules: trained on, exported, kept apart."""

import subprocess
from pathlib import Path

import datasets
import polars as pl
import pytest
from support.project_copy import Project

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

RESULTS = "results/small"
ROWS = pl.DataFrame(
    {
        "question": ["Which key? It is 12. The key is"] * 4,
        "said": [f" {n}{n + 1}" for n in range(4)],
    }
)


@pytest.fixture
def experiment(project: Project, small_experiment: dict) -> dict:
    """A dense model to be fine-tuned on rows of four kinds."""
    (project.root / "prose").mkdir()
    for n in range(30):
        text = f"The grass is green. The sky is blue. Here we go {n}. " * 9
        (project.root / f"prose/{n:02}.txt").write_text(text)
    ROWS.write_ndjson(project.root / "mine.jsonl")
    columns = {"prompt_column": "question", "answer_column": "said"}
    small_experiment["finetune_data"] = {
        "keys": {"type": "passkey", "examples": 6, "length": 128},
        "of_task": {"type": "task", "task": "passkey", "examples": 4, "length": 128},
        "mine": {"type": "rows", "path": "mine.jsonl", "length": 128, **columns},
        "prose": {"type": "text", "path": "prose", "examples": 8, "length": [64, 128]},
    }
    weights = {"keys": 3, "of_task": 1, "mine": 1, "prose": 1.5}
    recipe = {"data": weights, "steps": 4, "batch_size": 4, "sequence_length": 128, "log_every": 1}
    small_experiment["models"]["tuned"] = {"base": "base", "finetune": recipe}
    small_experiment["systems"]["tuned"] = {"model": "tuned"}
    return small_experiment


def run(project: Project, experiment: dict, *targets: str) -> subprocess.CompletedProcess[str]:
    name = project.write(experiment)
    named = (f"{RESULTS}/{target}" for target in targets)
    return project.snakemake("--configfile", name, "--cores", "1", *named)


def test_a_model_is_trained_on_a_mixture_that_opens_elsewhere(project: Project, experiment: dict):
    checked = [f"training_rows/base/{name}.csv" for name in ("keys", "of_task", "mine")]
    saved = [f"export/datasets/base/{name}" for name in ("keys", "prose")]
    done = run(
        project,
        experiment,
        "models/tuned/model.safetensors",
        *checked,
        *(f"{folder}/state.json" for folder in saved),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = project.root / RESULTS
    assert pl.read_parquet(results / "training/tuned.parquet")["step"].to_list() == [1, 2, 3, 4]
    tables = pl.concat(pl.read_csv(results / path) for path in checked)
    assert tables["shared"].to_list() == [0] * 6
    assert tables["samples"].to_list() == [4] * 6
    for folder in saved:
        table = pl.read_parquet(results / f"finetune_data/base/{Path(folder).name}.parquet")
        assert datasets.load_from_disk(results / folder).to_list() == table.to_dicts()
    prose = pl.read_parquet(results / "finetune_data/base/prose.parquet")["input_ids"]
    assert prose.list.len().to_list() == [64, 128] * 4


def test_rows_that_give_an_evaluation_away_stop_the_run(project: Project, experiment: dict):
    samples = "samples/base/passkey/128.parquet"
    assert run(project, experiment, samples).returncode == 0
    sample = pl.read_parquet(project.root / RESULTS / samples).row(2, named=True)
    (key,) = sample["outputs"]
    leaked = pl.DataFrame({"question": [sample["prompt"]], "said": [f" {key}"]})
    pl.concat([ROWS, leaked]).write_ndjson(project.root / "mine.jsonl")
    done = run(project, experiment, "training_rows/base/mine.csv")
    assert done.returncode != 0
    (line,) = _told(project, "check_training_rows/base/mine")
    assert line.endswith(
        "needlework: check_training_rows: finetune_data.mine: contains evaluation samples: "
        f"{key} (row 4, sample 2 of passkey at 128); remove these rows, or evaluate other samples"
    )
    assert not (project.root / RESULTS / "training_rows/base/mine.csv").exists()


def _told(project: Project, log: str) -> list[str]:
    lines = Path(project.root / RESULTS / f"logs/{log}.log").read_text().splitlines()
    return [line for line in lines if "needlework: " in line]
