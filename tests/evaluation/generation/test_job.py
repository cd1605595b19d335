"""What the key of a system's answers depends on."""

import pytest

from needlework.config.opening import ModelSpec, Opening
from needlework.evaluation.early_stopping import StopRule
from needlework.evaluation.generation.job import EvaluationJob, read_skipped, write_skipped
from needlework.tables.skipped import OUT_OF_MEMORY, SkippedCell

WEIGHTS = {"config.json": "aa", "model.safetensors": "bb"}
SEER = {"type": "seer", "block_size": 16, "density": 0.25, "gates": "results/quick/gates/own"}
JOB = EvaluationJob(system="seer", model=ModelSpec(path="results/quick/models/m"), attention=SEER)


def facts(job: EvaluationJob = JOB, weights=WEIGHTS, code="c0de", threads=1) -> dict:
    return job.facts(weights, code, threads)


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "renamed"},
        {"model": ModelSpec(path="another/folder")},
        {"attention": {**SEER, "gates": "results/precise/gates/own"}},
        {"stop_rule": StopRule(min_accuracy=0.5, metrics={}, scorer="needlework.scoring.score")},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_names_and_folders_do_not_count(changed):
    assert facts(JOB.model_copy(update=changed)) == facts()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ModelSpec(path="results/quick/models/m", dtype="bfloat16")},
        {"model": ModelSpec(path="results/quick/models/m", opening=Opening(cache="quantized"))},
        {"attention": {**SEER, "density": 0.5}},
        {"attention": None},
        {"thinking_tokens": 8},
        {"allow_extrapolation": True},
    ],
    ids=str,
)
def test_parameters_count(changed):
    assert facts(JOB.model_copy(update=changed)) != facts()


@pytest.mark.parametrize(
    "changed", [{"weights": {**WEIGHTS, "gates.json": "cc"}}, {"code": "c0df"}, {"threads": 2}]
)
def test_weights_code_and_threads_count(changed):
    assert facts(**changed) != facts()


def test_a_model_on_the_hub_counts_by_its_commit(monkeypatch: pytest.MonkeyPatch):
    job = EvaluationJob(system="s", model=ModelSpec(path="owner/name", revision="v1"))
    commits = {"v1": "c1", "v2": "c2"}
    monkeypatch.setattr(
        "needlework.sources.hub.commit", lambda path, revision: commits.get(revision)
    )
    assert facts(job, {})["hub"] == ["owner/name", "c1"]
    moved = job.model_copy(update={"model": ModelSpec(path="owner/name", revision="v2")})
    assert facts(moved, {}) != facts(job, {})
    # Without a known commit no answer is found again.
    unknown = job.model_copy(update={"model": ModelSpec(path="owner/name")})
    assert facts(unknown, {}) != facts(unknown, {})


def test_skipped_cells_are_read_as_written(tmp_path):
    cells = [SkippedCell("dense", "vt", n, OUT_OF_MEMORY, "at 8: no more") for n in (8, 16)]
    write_skipped(tmp_path / "skipped.json", cells)
    assert read_skipped(tmp_path / "skipped.json") == cells
