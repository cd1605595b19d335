"""Processes of one job: their logs, and how each way to end reaches the caller."""

import logging
from pathlib import Path

import pytest
from support.paths import PYTHONPATH

from needlework.runtime.processes import LOG_PREFIX, run_processes

MODULE = "support.plain_launcher"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def run(folder: Path, *steps: tuple[str, object]) -> None:
    run_processes(MODULE, {"steps": steps}, folder / "job", 1, [MODULE])


def test_marked_lines_are_logged_and_others_are_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(tmp_path, ("print", f"{LOG_PREFIX}step 1"), ("print", "a warning of a library"))
    assert caplog.messages == ["step 1"]


def test_a_reported_error_is_raised(tmp_path):
    message = "sequence_length: row 0 has 11 tokens"
    with pytest.raises(ValueError, match=f"^{message}$"):
        run(tmp_path, ("report", message), ("exit", 1))


def test_an_error_of_an_earlier_run_is_not_reported_again(tmp_path):
    with pytest.raises(ValueError, match="too long"):
        run(tmp_path, ("report", "too long"), ("exit", 1))
    run(tmp_path, ("print", "fine"))


def test_a_killed_process_is_explained(tmp_path):
    with pytest.raises(ValueError, match="one of 1 processes was killed, probably because memory"):
        run(tmp_path, ("kill", None))


def test_the_output_of_another_failure_is_logged(tmp_path, caplog):
    with pytest.raises(RuntimeError, match="one of 1 processes failed with exit code 1"):
        run(tmp_path, ("print", "Traceback of it"), ("exit", 3))
    assert "Traceback of it" in caplog.text
