"""Progress and failures of a Snakemake run, from the events of our logger plugin."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_MOST_FAILURES = 5
# Jobs differ in length: estimate the time left from the whole run, not its last seconds.
_ESTIMATE_OVER_SECONDS = 1e6
_PROGRESS = re.compile(r"^\S+ \S+ (.*\d+/\d+) \[", flags=re.MULTILINE)
_END_BYTES = 2000


@dataclass(frozen=True)
class Job:
    """A job of the workflow."""

    rule: str
    wildcards: dict[str, str]
    logs: tuple[str, ...] = ()
    """Its log files."""

    def __str__(self) -> str:
        if not self.wildcards:
            return self.rule
        return f"{self.rule} ({', '.join(f'{k}={v}' for k, v in self.wildcards.items())})"

    def progress(self) -> str:
        """The last progress that the job logged, such as `niah 512: 5/22`; empty if none yet."""
        for log in filter(None, map(_end_of, self.logs)):
            if found := _PROGRESS.findall(log):
                return found[-1]
        return ""


@dataclass
class RunState:
    """What a run does: counts of jobs, the jobs at work, the failed jobs with their log files."""

    done: int = 0
    total: int | None = None
    running: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, tuple[Job, list[str]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """Messages of Snakemake that belong to no job."""

    def update(self, event: dict[str, Any]) -> Job | None:
        """Take in one event of the logger plugin.

        Returns:
            The job that finished, if one did.
        """
        match event["event"]:
            case "run_info" if event["stats"]:
                self.total = event["stats"]["total"]
            case "progress":
                self.done, self.total = event["done"], event["total"]
            case "job_info":
                logs = tuple(event.get("log") or ())
                job = Job(event["rule_name"], event["wildcards"] or {}, logs)
                self.running[event["jobid"]] = job
                self.failed.pop(event["jobid"], None)  # a retry
            case "job_error":
                job = self.running.pop(event["jobid"], Job(event["rule_name"], {}))
                self.failed[event["jobid"]] = job, event["log"] or []
            case "job_finished" if event["job_id"] in self.running:
                return self.running.pop(event["job_id"])
            case "error":
                self.errors.append(str(event["msg"]))
        return None

    def failures(self) -> Iterator[str]:
        """One line for each failed job: rule, wildcards, error and log file."""
        failed = list(self.failed.values())
        for job, logs in failed[:_MOST_FAILURES]:
            place = f" [log: {logs[0]}]" if logs else ""
            yield f"{job}: {_error_in(logs)}{place}"
        if len(failed) > _MOST_FAILURES:
            yield f"{len(failed) - _MOST_FAILURES} more jobs failed"


def _error_in(logs: list[str]) -> str:
    """The error message of a stage's log file, without time and rule."""
    lines = []
    for log in logs:
        if Path(log).is_file():
            lines += Path(log).read_text(errors="replace").strip().splitlines()
    if not lines:
        return "ended without a message; it was killed, or ran out of memory"
    reported = [line.partition("needlework: ")[2] for line in lines if "needlework: " in line]
    if reported and not reported[-1].endswith("internal error"):
        return reported[-1].partition(": ")[2]
    return lines[-1]


def _end_of(log: str) -> str:
    """The last lines of a log file; empty if there is none."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


class _Running(ProgressColumn):
    """The jobs at work, each with its own progress."""

    def __init__(self, state: RunState):
        super().__init__()
        self._state = state

    def render(self, task: Task) -> Text:
        """Text of the column."""
        jobs = list(self._state.running.values())
        shown = [f"{job}{f' {done}' if (done := job.progress()) else ''}" for job in jobs]
        return Text("; ".join(shown) or "preparing")


def follow(events: Iterable[dict[str, Any]], console: Console) -> RunState:
    """Show `events` to their end: a progress bar on a terminal, else a line per finished job."""
    state = RunState()
    if console.is_terminal:
        _draw(state, events, console)
    else:
        for event in events:
            if (job := state.update(event)) is not None:
                console.print(f"[{state.done + 1}/{state.total}] {job}", markup=False)
    return state


def _draw(state: RunState, events: Iterable[dict[str, Any]], console: Console) -> None:
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("jobs,"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left "),
        _Running(state),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=4,
        speed_estimate_period=_ESTIMATE_OVER_SECONDS,
    ) as progress:
        task = progress.add_task("", total=None)
        for event in events:
            state.update(event)
            progress.update(task, completed=state.done, total=state.total)
