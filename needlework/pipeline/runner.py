"""Run the workflow from data to report, and resume an interrupted run."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from threading import Thread
from typing import IO, Any

import psutil
from rich.console import Console

from needlework.pipeline.lock import locked
from needlework.pipeline.output_dir import require_writable
from needlework.pipeline.progress import RunState, follow
from needlework.runtime.locations import PACKAGE, WORKFLOW

_STATE = Path(".snakemake")
_PLUGINS = PACKAGE / "pipeline" / "snakemake_plugins"
_PRINTING_OPTIONS = {
    "-n", "--dry-run", "--dryrun", "--summary", "-S", "--detailed-summary", "-D", "--dag",
    "--rulegraph", "--filegraph", "--list-rules", "--list", "-l", "--list-target-rules",
    "--list-changes", "--lint", "--unlock", "--version", "-v", "--help", "-h",
}  # fmt: skip
_SECONDS_TO_STOP = 10
_SNAKEMAKE = "needlework.pipeline.snakemake_cli"


def only_prints(options: list[str]) -> bool:
    """Whether these Snakemake options print something instead of running jobs."""
    return not _PRINTING_OPTIONS.isdisjoint(options)


def print_workflow(configfile: Path, cores: str, options: list[str]) -> None:
    """Run Snakemake with options that only print, on this terminal.

    Raises:
        ValueError: Snakemake fails.
    """
    status = subprocess.call([*_snakemake(configfile), "--cores", cores, *options])
    if status != 0:
        raise ValueError(f"snakemake failed with status {status}; see its messages above")


def run_workflow(
    configfile: Path,
    results: Path,
    cores: str,
    options: list[str],
    *,
    console: Console,
    verbose: bool = False,
) -> None:
    """Run Snakemake, with its output in `run_log(results)` and progress on the console.

    Args:
        options: further arguments of snakemake, such as targets.
        console: shows a progress bar on a terminal, else a line for each finished job.
        verbose: show Snakemake's output instead.

    Raises:
        ValueError: another run is active in this folder, or a job failed. The last lines of the
            message give the reason.
    """
    busy = f"{Path.cwd()}: another `needlework run` is active here; wait until it ends"
    require_writable(results)
    with locked(_STATE / "needlework.lock", busy):
        log = run_log(results)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            if _has_stale_lock():
                _end_orphans()
                _call([*_snakemake(configfile), "--unlock", "--quiet"], output)
            # --logger takes several values: another option must follow it.
            command = [*_snakemake(configfile), "--logger", "needlework", "--cores", cores]
            status, state = _run([*command, *options], output, console, verbose)
    if status != 0:
        reasons = list(state.failures()) or _last_messages(log, state)
        raise ValueError("\n".join([f"the run failed; its log is {log}", *reasons]))


def write_report(configfile: Path, results: Path) -> Path:
    """Write the HTML report of a finished run.

    Returns:
        Path of the report.

    Raises:
        ValueError: Snakemake fails.
    """
    report = results / "report.html"
    partial = report.with_name(".partial-report.html")
    command = [*_snakemake(configfile), "--cores", "1", "--report", str(partial), "--quiet"]
    with run_log(results).open("a") as output:
        _call(command, output)
    partial.replace(report)
    return report


def run_log(results: Path) -> Path:
    """Where the output of Snakemake and its jobs goes."""
    return results / "logs" / "run.log"


def pending_outputs(configfile: Path, options: list[str]) -> list[Path]:
    """The files that a run would make.

    Raises:
        ValueError: Snakemake cannot plan the run.
    """
    command = [*_snakemake(configfile), "--nolock", "--summary", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"the run cannot be planned\n{done.stderr.strip()}")
    # A dry run prints its log before the table.
    table = dropwhile(lambda line: "\t" not in line, done.stdout.splitlines())
    rows = csv.DictReader(table, delimiter="\t")
    return [Path(row["output_file"]) for row in rows if row["plan"] == "update pending"]


def _snakemake(configfile: Path) -> list[str]:
    # Snakemake runs the scripts of jobs by an unquoted path of the interpreter.
    if " " in sys.executable:
        raise ValueError(
            f"{sys.executable}: the path of Python has a blank, which jobs cannot start from; "
            "install needlework in an environment whose path has none"
        )
    return [
        *(sys.executable, "-m", _SNAKEMAKE),
        *("--snakefile", str(WORKFLOW / "Snakefile"), "--configfile", str(configfile)),
    ]


def _run(
    command: list[str], output: IO[str], console: Console, verbose: bool
) -> tuple[int, RunState]:
    """Run Snakemake with our logger plugin to its end; its status, and what it did."""
    reading, writing = os.pipe()
    paths = [str(_PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "NEEDLEWORK_EVENTS": str(writing),
    }
    with (
        os.fdopen(reading) as lines,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE if verbose else output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[writing],
            text=True,
        ) as process,
        _stopped_on_interrupt(process),
    ):
        os.close(writing)
        if process.stdout is not None:
            Thread(target=_copy, args=(process.stdout, output), daemon=True).start()
        events: Iterator[dict[str, Any]] = map(json.loads, lines)
        state = follow(events, Console(quiet=True) if verbose else console)
        return process.wait(), state


def _copy(lines: IO[str], output: IO[str]) -> None:
    for line in lines:
        sys.stderr.write(line)
        output.write(line)


@contextmanager
def _stopped_on_interrupt(process: subprocess.Popen[str]) -> Iterator[None]:
    """Give Snakemake, which gets the interrupt as well, time to end its jobs."""
    try:
        yield
    except KeyboardInterrupt:
        try:
            process.wait(_SECONDS_TO_STOP)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
        raise


def _last_messages(log: Path, state: RunState) -> list[str]:
    """Why Snakemake ended without a failed job, such as an error in the Snakefile."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("needlework: ") for line in lines if line.startswith("needlework: ")]
    if ours:
        return ours
    return state.errors[-1].splitlines() if state.errors else lines[-5:]


def _has_stale_lock() -> bool:
    """Whether an interrupted run left Snakemake's own lock.

    Raises:
        ValueError: a snakemake process runs in this folder, so the lock may be its.
    """
    is_locked = any((_STATE / "locks").glob("*.lock"))
    if is_locked and (active := _processes_here(_is_snakemake)):
        raise ValueError(
            f"{Path.cwd()}: snakemake (process {active[0].pid}) is active here; wait until it ends"
        )
    return is_locked


def _end_orphans() -> None:
    """Kill jobs that outlived an interrupted run, because they could still write."""
    orphans = _processes_here(_is_job)
    for process in orphans:
        # Safe: outputs have temporary names until they are complete.
        process.kill()
    psutil.wait_procs(orphans, timeout=10)


def _processes_here(matches: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Other processes in this folder with a command that `matches`, except our parents."""
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    processes = []
    for process in psutil.process_iter():
        try:
            is_here = process.pid not in own and Path(process.cwd()) == Path.cwd()
            if is_here and matches(process.cmdline()):
                processes.append(process)
        except (psutil.Error, OSError):
            continue
    return processes


def _is_snakemake(command: list[str]) -> bool:
    # `snakemake`, `python -m snakemake`, or ours.
    return any(Path(word).name in ("snakemake", _SNAKEMAKE) for word in command[:3])


def _is_job(command: list[str]) -> bool:
    return any(str(_STATE / "scripts") in word for word in command)


def _call(command: list[str], output: IO[str]) -> None:
    output.flush()
    status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT)
    if status != 0:
        lines = Path(output.name).read_text(errors="replace").strip().splitlines()
        raise ValueError("\n".join([f"{' '.join(command)}: status {status}", *lines[-3:]]))
