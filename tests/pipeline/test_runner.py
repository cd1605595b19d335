"""Running the workflow: pending files, progress, logs, and the reasons of failed runs."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from support.paths import ROOT

from needlework.pipeline import runner
from needlework.pipeline.runner import pending_outputs, run_log, run_workflow, write_report

pytestmark = pytest.mark.slow

RESULTS = Path("results/trial")
SNAKEFILE = """
rule all:
    input:
        expand("results/trial/{n}.txt", n=config["numbers"]),

rule make_number:
    output:
        "results/trial/{n}.txt",
    log:
        "results/trial/logs/{n}.log",
    shell:
        "echo 2026-01-01 needlework: make_number: {wildcards.n} is odd > {log}; "
        "[ $(({wildcards.n} % 2)) = 0 ] && touch {output}"
"""


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small workflow in the working directory."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    monkeypatch.setattr(runner, "WORKFLOW", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(numbers: list[int], *options: str, verbose: bool = False) -> list[str]:
    """Run the small workflow; the lines that it prints to a pipe."""
    Path("trial.yaml").write_text(f"numbers: {numbers}\n")
    console = Console(file=io.StringIO(), width=200)
    run_workflow(Path("trial.yaml"), RESULTS, "1", [*options], console=console, verbose=verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_run_prints_a_line_for_each_finished_job(workflow: Path, capfd):
    lines = run([2, 4])
    assert lines[-1] == "[3/3] all"
    assert sorted(line[6:] for line in lines[:2]) == ["make_number (n=2)", "make_number (n=4)"]
    assert capfd.readouterr() == ("", "")
    log = run_log(RESULTS).read_text()
    assert "rule make_number:" in log
    assert "3 of 3 steps (100%) done" in log


def test_verbose_shows_the_output_of_snakemake(workflow: Path, capfd):
    assert run([2], verbose=True) == []
    shown = capfd.readouterr().err
    assert "rule make_number:" in shown
    assert shown == run_log(RESULTS).read_text()


def test_a_failed_run_ends_with_its_reasons(workflow: Path):
    with pytest.raises(ValueError, match="the run failed") as error:
        run([2, 3, 5], "--keep-going")
    first, *reasons = str(error.value).splitlines()
    assert first == "the run failed; its log is results/trial/logs/run.log"
    assert sorted(reasons) == [
        f"make_number (n={n}): {n} is odd [log: results/trial/logs/{n}.log]" for n in (3, 5)
    ]
    assert Path("results/trial/2.txt").exists()


def test_an_error_of_the_snakefile_is_the_reason(workflow: Path):
    with (workflow / "Snakefile").open("a") as file:
        file.write('\nimport sys; sys.exit("needlework: trial.yaml:1: numbers: are too small")\n')
    with pytest.raises(ValueError, match="the run failed") as error:
        run([2])
    assert str(error.value).splitlines()[1:] == ["trial.yaml:1: numbers: are too small"]


def test_an_error_without_a_job_is_the_reason(workflow: Path):
    with pytest.raises(ValueError, match="the run failed") as error:
        run([2], "no-such-target")
    assert "MissingRuleException" in str(error.value)


def test_a_second_run_in_the_same_folder_is_refused(workflow: Path):
    with (
        runner.locked(Path(".snakemake/needlework.lock"), "unused"),
        pytest.raises(ValueError, match="another `needlework run` is active here; wait until"),
    ):
        run([2])


def test_an_interrupted_run_ends_its_jobs_and_resumes(workflow: Path):
    slow = SNAKEFILE.replace('"[ $((', '"sleep ${{SECONDS_OF_A_JOB:-0}}; [ $((')
    (workflow / "Snakefile").write_text(slow)
    Path("trial.yaml").write_text("numbers: [2]\n")
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from needlework.pipeline import runner\n"
        "runner.WORKFLOW = Path.cwd()\n"
        "try: runner.run_workflow(Path('trial.yaml'), Path('results/trial'), '1', [], "
        "console=Console())\n"
        "except KeyboardInterrupt: sys.exit('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "SECONDS_OF_A_JOB": "600", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts it: an interrupt reaches the whole process group.
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    group = psutil.Process(process.pid)
    while not (jobs := [job for job in group.children(recursive=True) if job.name() == "sleep"]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.splitlines()[-1]) == (1, "interrupted")
    psutil.wait_procs(jobs, timeout=10)
    assert not any(job.is_running() for job in jobs)
    assert not Path("results/trial/2.txt").exists()
    assert run([2])[-1] == "[2/2] all"


def test_a_failed_report_has_the_last_lines_of_the_log(workflow: Path):
    Path("trial.yaml").write_text("numbers: [2]\n")
    run_log(RESULTS).parent.mkdir(parents=True)
    (workflow / "Snakefile").write_text('import sys; sys.exit("broken")\n')
    with pytest.raises(ValueError, match="--report") as error:
        write_report(Path("trial.yaml"), RESULTS)
    assert str(error.value).splitlines()[-1] == "broken"
    assert not (RESULTS / "report.html").exists()


def test_pending_outputs_are_the_same_for_a_dry_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = Path("config/api.yaml")
    pending = pending_outputs(file, ["--forceall"])
    assert Path("results/api/summary.csv") in pending
    assert pending_outputs(file, ["--forceall", "-n"]) == pending


def test_a_blank_in_the_path_of_python_is_refused_before_a_run(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/my envs/bin/python")
    with pytest.raises(ValueError, match=r"^/my envs/bin/python: the path of Python has a blank"):
        pending_outputs(Path("config.yaml"), [])
