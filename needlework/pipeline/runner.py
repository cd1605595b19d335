"""Run the workflow from start to report, also after a run that was killed."""

import csv
import subprocess
import sys
from collections.abc import Callable
from itertools import dropwhile
from pathlib import Path

import psutil

from needlework.pipeline.lock import locked

_STATE = Path(".snakemake")


def run_workflow(configfile: Path, results: Path, cores: str, extra: list[str]) -> Path:
    """`snakemake`, then `snakemake --report`; the path of the report.

    Raises:
        ValueError: another run is alive in this folder, or a step failed.
    """
    report = results / "report.html"
    snakemake = _snakemake(configfile)
    busy = f"{Path.cwd()}: another `needlework run` is at work here; wait for it to end"
    with locked(_STATE / "needlework.lock", busy):
        if _stale_lock():
            _end_orphans()
            _call([*snakemake, "--unlock", "--quiet"], "unlocking")
        _call([*snakemake, "--cores", cores, *extra], "the run")
        partial = report.with_name(".partial-report.html")
        _call([*snakemake, "--cores", "1", "--report", str(partial), "--quiet"], "the report")
        partial.replace(report)
    return report


def due(configfile: Path, extra: list[str]) -> list[Path]:
    """The files that a run would make.

    Raises:
        ValueError: Snakemake finds no way to make them.
    """
    command = [*_snakemake(configfile), "--nolock", "--summary", *extra]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
    _require(done.returncode, "looking for what is to be done")
    # A dry run writes its log there too, before the table.
    table = dropwhile(lambda line: "\t" not in line, done.stdout.splitlines())
    rows = csv.DictReader(table, delimiter="\t")
    return [Path(row["output_file"]) for row in rows if row["plan"] == "update pending"]


def _snakemake(configfile: Path) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--configfile", str(configfile)]


def _stale_lock() -> bool:
    """Whether Snakemake's own lock was left by a killed run.

    Raises:
        ValueError: the lock's owner may be alive: a snakemake runs in this folder.
    """
    locked = any((_STATE / "locks").glob("*.lock"))
    if locked and (alive := _here(_is_snakemake)):
        raise ValueError(
            f"{Path.cwd()}: snakemake (process {alive[0].pid}) is at work here; wait for it to end"
        )
    return locked


def _end_orphans() -> None:
    """End jobs that outlived a killed run: they could still write."""
    orphans = _here(_is_job)
    for process in orphans:
        # Nothing is lost: outputs have temporary names until they are whole.
        process.kill()
    psutil.wait_procs(orphans, timeout=10)


def _here(wanted: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Processes that work in this folder and whose command is `wanted`, this one's line aside."""
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            here = process.pid not in own and Path(process.cwd()) == Path.cwd()
            if here and wanted(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _is_snakemake(command: list[str]) -> bool:
    # The command itself, or `python -m snakemake`.
    return any(Path(word).name == "snakemake" for word in command[:3])


def _is_job(command: list[str]) -> bool:
    return any(str(_STATE / "scripts") in word for word in command)


def _call(command: list[str], what: str) -> None:
    _require(subprocess.call(command), what)


def _require(status: int, what: str) -> None:
    if status != 0:
        raise ValueError(f"{what} stopped with status {status}; what to mend stands above")
