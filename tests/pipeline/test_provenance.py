"""Records, lineage and verification of files that stages made."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from needlework.pipeline.provenance import (
    changed_input,
    lineage,
    read_record,
    record_path,
    sha256_file,
    verify,
    write_record,
)

# The inputs of each file; files that are not keys are sources.
MADE_FROM = {
    "results/run/samples.parquet": ["tokenizer.json"],
    "results/run/answers.parquet": ["results/run/samples.parquet", "weights.bin"],
    "results/run/other.parquet": ["results/run/samples.parquet"],
    "results/run/summary.parquet": ["results/run/answers.parquet"],
    "results/run/figures/accuracy.svg": ["results/run/summary.parquet"],
    "results/run/figures/heatmap/key.svg": ["results/run/summary.parquet"],
    "results/run/figures/cost.svg": ["results/run/other.parquet"],
}
ACCURACY, COST, HEATMAP = (
    "results/run/figures/accuracy.svg",
    "results/run/figures/cost.svg",
    "results/run/figures/heatmap/key.svg",
)
DEPENDENTS = {
    "tokenizer.json": [ACCURACY, COST, HEATMAP],
    "weights.bin": [ACCURACY, HEATMAP],
    "results/run/samples.parquet": [ACCURACY, COST, HEATMAP],
    "results/run/answers.parquet": [ACCURACY, HEATMAP],
    "results/run/other.parquet": [COST],
    "results/run/summary.parquet": [ACCURACY, HEATMAP],
    ACCURACY: [ACCURACY],
    HEATMAP: [HEATMAP],
    COST: [COST],
}


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _make(path: str) -> None:
    """Write a file as a rule does: from its inputs, with its record."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    inputs = MADE_FROM[path]
    Path(path).write_text(f"{path} from {[Path(parent).read_text() for parent in inputs]}")
    record = {"rule": "make", "inputs": {parent: _hash(parent) for parent in inputs}}
    write_record(path, {**record, "outputs": {path: _hash(path)}})


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.json").write_text("{}")
    Path("weights.bin").write_bytes(bytes(range(128)))
    for path in MADE_FROM:
        _make(path)
    return tmp_path


def _flip_a_byte(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def test_sha256_of_a_file_longer_than_a_read_block(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "long").write_bytes(content)
    assert sha256_file(tmp_path / "long") == hashlib.sha256(content).hexdigest()


def test_an_untouched_folder_verifies(run):
    result = verify("results/run")
    assert result.invalid == {}
    assert result.checked == len(MADE_FROM) + 2
    assert result.unrecorded == []


@pytest.mark.parametrize("path", DEPENDENTS)
def test_a_flipped_byte_names_the_file_and_its_dependent_figures(run, path):
    _flip_a_byte(path)
    result = verify("results/run")
    assert list(result.invalid) == [path]
    assert result.figures == {path: DEPENDENTS[path]}


@pytest.mark.parametrize("path", DEPENDENTS)
def test_a_missing_file_is_named_with_its_dependent_figures(run, path):
    Path(path).unlink()
    result = verify("results/run")
    assert list(result.invalid) == [path]
    assert "is missing" in result.invalid[path]
    assert result.figures == {path: DEPENDENTS[path]}


def test_invalid_files_are_in_build_order(run):
    for path in (ACCURACY, "results/run/answers.parquet", "results/run/samples.parquet"):
        _flip_a_byte(path)
    assert list(verify("results/run").invalid) == [
        "results/run/samples.parquet",
        "results/run/answers.parquet",
        ACCURACY,
    ]


def test_a_rebuilt_file_invalidates_what_was_made_from_its_old_version(run):
    Path("weights.bin").write_text("others")
    _make("results/run/answers.parquet")
    result = verify("results/run")
    assert list(result.invalid) == ["results/run/summary.parquet"]
    assert (
        "an older version of results/run/answers.parquet"
        in result.invalid["results/run/summary.parquet"]
    )
    assert result.figures == {"results/run/summary.parquet": [ACCURACY, HEATMAP]}


def test_files_without_a_record_are_listed_separately(run):
    Path("results/run/notes.txt").write_text("mine")
    result = verify("results/run")
    assert (result.invalid, result.unrecorded) == ({}, ["results/run/notes.txt"])


def test_a_folder_may_be_given_as_any_equivalent_path(run, monkeypatch):
    _flip_a_byte(COST)
    for folder in (run / "results/run", "./results/../results/run/", "results"):
        assert list(verify(folder).invalid) == [COST]
    assert lineage(run / COST).path == COST
    monkeypatch.chdir(run / "results/run/figures")
    with pytest.raises(ValueError, match="is outside this folder; change to the folder of the run"):
        verify(run / "results/run")
    with pytest.raises(ValueError, match=r"tokenizer\.json: is outside this folder"):
        lineage(run / "tokenizer.json")


@pytest.mark.parametrize("folder", ["results/none", "."])
def test_a_folder_without_records_is_an_error(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nothing to verify; name a folder such as results/quick"):
        verify(folder)


def test_lineage_reaches_the_sources(run):
    def flat(node):
        return {node.path: [flat(parent) for parent in node.parents]}

    samples = {"results/run/samples.parquet": [{"tokenizer.json": []}]}
    answers = {"results/run/answers.parquet": [samples, {"weights.bin": []}]}
    root = lineage(ACCURACY)
    assert flat(root) == {ACCURACY: [{"results/run/summary.parquet": [answers]}]}
    assert root.record["rule"] == "make"
    assert lineage("weights.bin").record is None
    with pytest.raises(ValueError, match=r"none\.svg: no such file; name a file in results/"):
        lineage("none.svg")


def test_a_changed_input_is_a_one_line_error(run):
    path = "results/run/answers.parquet"
    assert changed_input(path) is None
    assert changed_input("weights.bin") is None
    Path(path).write_bytes(Path(path).read_bytes()[:10])
    line = changed_input(path)
    assert line.startswith(f"{path}: changed since rule make wrote it")
    assert line.endswith("; delete it and run again")
    assert "\n" not in line


@pytest.mark.parametrize("text", ['{"rule": ', "[]", '{"rule": "make", "inputs": {}}', "\0"])
def test_an_incomplete_record_is_an_error(run, text):
    record_path(COST).write_text(text)
    for call in (lambda: verify("results/run"), lambda: lineage(COST), lambda: changed_input(COST)):
        with pytest.raises(ValueError, match=r"cost\.svg\.provenance\.json: incomplete record; de"):
            call()


def test_a_record_round_trips_and_leaves_no_other_file(tmp_path):
    record = {"rule": "make", "inputs": {}, "outputs": {"a": "0"}, "params": {"depths": [0, 1.5]}}
    write_record(tmp_path / "a", {**record, "rule": "first"})
    write_record(tmp_path / "a", record)
    assert read_record(tmp_path / "a") == record
    assert [path.name for path in tmp_path.iterdir()] == ["a.provenance.json"]
    assert json.loads((tmp_path / "a.provenance.json").read_text()) == record
    assert read_record(tmp_path / "b") is None
