"""What goes wrong outside: wrong files, damaged files, read-only folders, kill -9."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from support.project_copy import Project

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]

# What Snakemake says of itself, whatever the experiment.
SNAKEMAKE_SAYS = ("Using workflow specific profile",)
EVERY_FORMAT = ("html", "svg", "png")


def figures(*names: str) -> set[str]:
    return {f"results/small/figures/{name}.{kind}" for name in names for kind in EVERY_FORMAT}


SCORED = figures(
    "accuracy", "effective_length", "pareto", "heatmap/passkey", "heatmap/niah", "finetuning"
)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not line.startswith(SNAKEMAKE_SAYS)]


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("samples: 4", "sampels: 4", "sampels = 4: unknown key; did you mean `samples`?"),
        ("samples: 4", "samples: four", "samples = 'four': write an integer"),
        (
            "density: 0.25",
            "density: 25",
            "systems.random.attention.density = 25: write a number of",
        ),
        (
            "model: base\n  r",
            "model: bass\n  r",
            "systems.dense.model = 'bass': unknown model; did",
        ),
        ("  random:\n", "  dense:\n", "systems.dense: duplicate key, first on line "),
        (
            "  passkey:\n",
            "  pass key:\n",
            "tasks.pass key: is not a valid name; start with a letter",
        ),
        ("- 256", "- 256000000", "lengths.1 = 256000000: exceeds the "),
    ],
    ids=lambda text: text.strip(),
)
def test_a_wrong_experiment_stops_the_dry_run_with_one_line(
    project: Project, small_experiment: dict, right: str, wrong: str, says: str
):
    text = yaml.safe_dump(small_experiment, sort_keys=False)
    assert text.count(right) == 1
    (project.root / "wrong.yaml").write_text(text.replace(right, wrong))

    done = project.snakemake("-n", "--configfile", "wrong.yaml")

    assert done.returncode != 0
    (line,) = said(done)
    assert line.startswith(f"needlework: {project.root}/wrong.yaml:")
    assert f": {says}" in line
    assert not (project.root / "results/small").exists()


def test_a_wrong_default_experiment_is_named_as_well(project: Project, small_experiment: dict):
    project.write({**small_experiment, "sampels": 4}, "config.yaml")
    (line,) = said(project.snakemake("-n"))
    assert line.startswith("needlework: config.yaml:")
    assert "sampels = 4: unknown key" in line


def test_an_experiment_that_lacks_a_key_is_named_not_the_default(
    project: Project, small_experiment: dict
):
    del small_experiment["systems"]
    (line,) = said(project.snakemake("-n", "--configfile", project.write(small_experiment)))
    assert (
        line == f"needlework: {project.root}/small.yaml:1: systems: is required; "
        "add it: systems to compare"
    )


_TORCH = """
import sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("status", end.code)
print("imported", sorted({"torch", "transformers", "accelerate"} & set(sys.modules)))
"""


@pytest.mark.parametrize("state", ["new", "finished"])
def test_a_dry_run_imports_no_torch(
    project: Project, small_experiment: dict, finished: Project, state: str
):
    project = project if state == "new" else finished
    if state == "new":
        project.write(small_experiment)
    done = project.python("-c", _TORCH, "-n", "--configfile", "small.yaml")
    lines = done.stdout.splitlines()
    assert "status 0" in lines
    assert "imported []" in lines
    assert ("evaluate_system" in done.stdout) == (state == "new")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_verifies(finished: Project):
    done = finished.needlework("verify", "results/small")
    assert (done.returncode, done.stderr) == (0, "")
    assert "every hash in results/small is valid" in done.stdout


@pytest.mark.parametrize(
    ("path", "standing"),
    [
        (
            "results/small/samples/base/passkey/128.parquet",
            SCORED | figures("cost", "memory", "density"),
        ),
        ("results/small/predictions/sketchwalk.parquet", SCORED | figures("cost")),
        ("results/small/scores/dense.parquet", SCORED),
        ("results/small/training/infini.parquet", figures("training")),
        (
            "results/small/models/infini/model.safetensors",
            SCORED | figures("cost", "memory"),
        ),
        (
            "results/small/gates/own/gates.safetensors",
            SCORED | figures("cost", "memory", "density"),
        ),
        (
            "resources/needlework-tiny/tokenizer.json",
            SCORED | figures("cost", "memory", "density", "training", "training_cost"),
        ),
    ],
)
def test_a_flipped_byte_is_found_with_every_figure_on_it(
    finished: Project, tmp_path: Path, path: str, standing: set[str]
):
    project = finished.copy(tmp_path / "copy")
    flip_a_byte(project.root / path)

    done = project.needlework("verify", "results/small")

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("invalid ")] == [path]
    assert {line.split()[-1] for line in lines if "depends on it: " in line} == standing


def test_a_cut_table_is_one_line_and_its_remedy_works(finished: Project, tmp_path: Path):
    project = finished.copy(tmp_path / "copy")
    cut = "results/small/scores/dense.parquet"
    content = (project.root / cut).read_bytes()
    (project.root / cut).write_bytes(content[: len(content) // 2])
    run = ("--configfile", "small.yaml", "--cores", "2")

    done = project.snakemake(*run)
    assert done.returncode != 0
    # Both rules that read it report the same.
    messages = {line.partition(" needlework: ")[2] for line in said(done)} - {""}
    assert {line.partition(": ")[2] for line in messages} == {
        f"{cut}: changed since rule score_predictions wrote it (its sha256 differs "
        "from its record); "
        "delete it and run again"
    }
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(project.root.rglob(".partial-*"))

    (project.root / cut).unlink()
    again = project.snakemake(*run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (project.root / cut).read_bytes() == content
    assert project.needlework("verify", "results/small").returncode == 0


@pytest.mark.parametrize("fault", [flip_a_byte, Path.unlink])
def test_what_verify_advises_makes_all_hold_again(finished: Project, tmp_path: Path, fault):
    project = finished.copy(tmp_path / "copy")
    path = "results/small/scores/dense.parquet"
    content = (project.root / path).read_bytes()
    fault(project.root / path)
    done = project.needlework("verify", "results/small")
    assert done.returncode == 1
    advice = done.stdout.splitlines()[-1].split()
    again = project.snakemake("--configfile", "small.yaml", "--cores", "2", *advice)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (project.root / path).read_bytes() == content
    assert project.needlework("verify", "results/small").returncode == 0


# A superuser writes where nobody may; without this right (CAP_DAC_OVERRIDE) it is as any user.
_AS_A_USER = """
import ctypes, os, sys
if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(24, 1, 0, 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    yield
    folder.chmod(mode)


@pytest.mark.parametrize("state", ["new", "finished"])
@pytest.mark.parametrize("command", ["dry run", "run"])
def test_a_read_only_results_folder_is_one_line(
    project: Project,
    small_experiment: dict,
    finished: Project,
    tmp_path: Path,
    state: str,
    command: str,
):
    if state == "finished":
        project = finished.copy(tmp_path / "copy")
    else:
        project.write(small_experiment)
    folder = project.root / ("results/small" if state == "finished" else "results")
    args = {
        "dry run": ["-m", "snakemake", "-n", "--configfile", "small.yaml"],
        "run": [
            "-c",
            "from needlework.cli.app import main; main()",
            "run",
            "--configfile",
            "small.yaml",
        ],
    }[command]
    with read_only(folder):
        done = project.python("-c", _AS_A_USER, *args)
    assert done.returncode == 1
    assert (
        said(done)[0]
        == f"needlework: {folder}: is not writable; change its permissions or run elsewhere"
    )
    assert "Traceback" not in done.stdout + done.stderr
    if command == "dry run":
        assert len(said(done)) == 1


def test_a_file_in_place_of_the_results_folder_is_one_line(
    project: Project, small_experiment: dict
):
    name = project.write(small_experiment)
    (project.root / "results/small").write_text("in the way")
    (line,) = said(project.snakemake("-n", "--configfile", name))
    assert line.endswith("results/small: is a file, but must be a folder; move the file away")


def jobs_of(project: Project, rule: str) -> list[psutil.Process]:
    """Python processes that run a script of `rule` in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            script = process.cmdline()[1:2]
            if Path(process.cwd()) == project.root and f".{rule}.py" in str(script):
                found.append(process)
        except psutil.Error:
            continue
    return found


def started(project: Project, *args: str) -> subprocess.Popen[bytes]:
    """The `needlework` command, left to itself."""
    return subprocess.Popen(
        [sys.executable, "-c", "from needlework.cli.app import main; main()", *args],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_job(project: Project, run: subprocess.Popen[bytes], rule: str) -> psutil.Process:
    while not (jobs := jobs_of(project, rule)):
        assert run.poll() is None, "the run ended before a job of it was seen"
        time.sleep(0.05)
    return jobs[0]


def test_a_killed_run_goes_on_when_run_again(project: Project, small_experiment: dict):
    small_experiment["lengths"] = [128]
    args = ("run", "--configfile", project.write(small_experiment), "--cores", "1")

    first = started(project, *args)
    job = wait_for_job(project, first, "evaluate_system")
    # While it is at work, a second is sent away and harms nothing.
    second = project.needlework(*args)
    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        f"needlework: {project.root}: another `needlework run` is active here; wait until it ends"
    ]

    job = next(iter(jobs_of(project, "evaluate_system")), job)
    job.send_signal(signal.SIGSTOP)  # It shall outlive its run, and still be there to write.
    for process in [*psutil.Process(first.pid).children(), psutil.Process(first.pid)]:
        process.kill()
    first.wait()
    assert job.is_running()
    assert any((project.root / ".snakemake/locks").iterdir())
    samples = project.root / "results/small/samples/base/passkey/128.parquet"
    made = samples.stat().st_mtime_ns

    again = project.needlework(*args)

    assert again.returncode == 0, again.stdout + again.stderr
    assert not job.is_running()
    assert "every hash in results/small is valid" in again.stdout
    assert f"Report: {project.root}/results/small/report.html" in again.stdout
    assert (project.root / "results/small/report.html").stat().st_size > 0
    assert not any((project.root / ".snakemake/locks").iterdir())
    assert not list(project.root.rglob(".partial-*"))
    # Tables that were complete before the kill are kept.
    assert samples.stat().st_mtime_ns == made
