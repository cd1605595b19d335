"""The state of a run, from the events of the Snakemake plugin."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from needlework.pipeline.progress import Job, RunState, follow

STARTED: dict[str, Any] = {
    "event": "job_info", "jobid": 1, "rule_name": "evaluate", "wildcards": {"system": "dense"},
}  # fmt: skip
FAILED: dict[str, Any] = {"event": "job_error", "jobid": 1, "rule_name": "evaluate", "log": []}
FINISHED: dict[str, Any] = {"event": "job_finished", "job_id": 1}


def failures(*events: dict[str, Any]) -> list[str]:
    state = RunState()
    for event in events:
        state.update(event)
    return list(state.failures())


def failure_with_log(tmp_path: Path, text: str) -> str:
    log = tmp_path / "job.log"
    log.write_text(text)
    (line,) = failures(STARTED, FAILED | {"log": [str(log)]})
    assert line.endswith(f" [log: {log}]")
    return line.removesuffix(f" [log: {log}]")


def test_a_user_error_is_shown_without_time_and_rule(tmp_path):
    text = "10:00 read\n10:01 needlework: evaluate: rows.txt: no rows; add some\n"
    line = failure_with_log(tmp_path, text)
    assert line == "evaluate (system=dense): rows.txt: no rows; add some"


def test_an_internal_error_shows_its_exception(tmp_path):
    text = "10:01 needlework: evaluate: internal error\nTraceback ...\n  File\nKeyError: 'x'\n"
    assert failure_with_log(tmp_path, text) == "evaluate (system=dense): KeyError: 'x'"


def test_a_job_without_a_message_was_killed(tmp_path):
    (line,) = failures(STARTED, FAILED)
    assert line == (
        "evaluate (system=dense): ended without a message; it was killed, or ran out of memory"
    )


def test_a_job_that_succeeds_on_a_retry_is_no_failure():
    assert failures(STARTED, FAILED, STARTED, FINISHED) == []


def test_many_failures_are_counted():
    events = [part | {"jobid": i} for i in range(8) for part in (STARTED, FAILED)]
    *lines, last = failures(*events)
    assert (len(lines), last) == (5, "3 more jobs failed")


def test_a_terminal_shows_one_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    events = [
        {"event": "run_info", "stats": {"evaluate": 1, "total": 2}},
        STARTED,
        FINISHED,
        {"event": "progress", "done": 1, "total": 2},
    ]
    state = follow(iter(events), console)
    assert (state.done, state.total, state.running) == (1, 2, {})
    assert "1/2" in console.file.getvalue()


def test_running_jobs_show_the_progress_that_they_log(tmp_path):
    log = tmp_path / "dense.log"
    job = Job("evaluate", {"system": "dense"}, (str(log),))
    assert job.progress() == ""
    log.write_text("2026-01-01 10:00:00,123 Loading weights\n")
    assert job.progress() == ""
    with log.open("a") as file:
        for done in (1, 7):
            file.write(f"2026-01-01 10:00:0{done},123 niah 4096: {done}/22 [00:03<00:20, 2 s/x]\n")
    assert job.progress() == "niah 4096: 7/22"

    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    follow(iter([STARTED | {"log": [str(log)]}]), console)
    assert "evaluate (system=dense) niah 4096: 7/22" in console.file.getvalue()
