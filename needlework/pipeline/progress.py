"""Progress and failures of a Snakemake run, from the events of our logger plugin."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_MOST_FAILURES = 5
# Jobs differ in length: estimate the time left from the whole run, not its last seconds.
_ESTIMATE_OVER_SECONDS = 1e6


@dataclass(frozen=True)
class Job:
    """A job of the workflow."""

    rule: str
    wildcards: dict[str, str]

    def __str__(self) -> str:
        if not self.wildcards:
            return self.rule
        return f"{self.rule} ({', '.join(f'{k}={v}' for k, v in self.wildcards.items())})"


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
                job = Job(event["rule_name"], event["wildcards"] or {})
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
        TextColumn("left  {task.description}"),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        speed_estimate_period=_ESTIMATE_OVER_SECONDS,
    ) as progress:
        task = progress.add_task("preparing", total=None)
        for event in events:
            state.update(event)
            running = "; ".join(str(job) for job in state.running.values())
            progress.update(
                task, completed=state.done, total=state.total, description=escape(running)
            )
