"""Stages: outputs, records, logs and errors of one job."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.pipeline import stage as stage_module
from needlework.pipeline.code_version import code_files
from needlework.pipeline.stage import package_versions

pytestmark = pytest.mark.slow

# A job as Snakemake starts it: a separate process with a `snakemake` object.
JOB = """
from snakemake.iocontainers import (
    InputFiles, Log, OutputFiles, Params, ResourceList, Snakemake, Wildcards
)
from pathlib import Path
from needlework.pipeline.stage import stage

__file__ = "workflow/scripts/compare_systems.py"
snakemake = Snakemake(
    InputFiles(fromdict={{"rows": "rows.txt", "words": "results/words.txt"}}),
    OutputFiles(fromdict={{"table": "results/out/table.txt", "notes": "results/out/notes.txt"}}),
    Params(
        fromdict={{"code": "abc", "modules": ["needlework.scoring.pairing"], "depths": [0, 50]}}
    ),
    Wildcards(fromdict={{"system": "dense"}}),
    2,
    ResourceList(fromdict={{}}),
    Log(["results/logs/job.log"]),
    {{}},
    "score_predictions",
    None,
)
with stage(snakemake) as s:
{body}
"""
WRITES = """
    assert Path(s.input.rows).read_text() == "rows"
    Path(s.output.table).write_text("a table")
    Path(s.output.notes).write_text("notes")
"""
TABLE, NOTES = Path("results/out/table.txt"), Path("results/out/notes.txt")
RECORD = Path("results/out/table.txt.provenance.json")


@dataclass(frozen=True)
class Finished:
    status: int
    printed: str


def _job(body: str, *, umask: int = 0o022) -> Finished:
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(body=body)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        umask=umask,
        check=False,
    )
    return Finished(done.returncode, done.stdout + done.stderr)


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("rows")
    Path("results").mkdir()
    Path("results/words.txt").write_text("words")
    outputs = {"results/words.txt": _sha256("results/words.txt")}
    record = {"rule": "spell", "inputs": {}, "outputs": outputs}
    Path("results/words.txt.provenance.json").write_text(json.dumps(record))
    return tmp_path


def _outputs() -> set[str]:
    return {path.name for path in Path("results/out").glob("*")}


def test_outputs_get_their_records():
    done = _job(WRITES)
    assert (done.status, done.printed) == (0, "")
    assert (TABLE.read_text(), NOTES.read_text()) == ("a table", "notes")
    assert _outputs() == {
        "table.txt",
        "table.txt.provenance.json",
        "notes.txt",
        "notes.txt.provenance.json",
    }
    assert Path("results/logs/job.log").is_file()


def test_the_record_describes_the_job():
    _job(WRITES)
    record = json.loads(RECORD.read_text())
    assert record["rule"] == "score_predictions"
    assert record["wildcards"] == {"system": "dense"}
    assert record["params"] == {"depths": [0, 50]}
    assert record["threads"] == 2
    assert record["inputs"] == {
        "rows.txt": _sha256("rows.txt"),
        "results/words.txt": _sha256("results/words.txt"),
    }
    assert record["outputs"] == {str(TABLE): _sha256(TABLE), str(NOTES): _sha256(NOTES)}
    assert record["code"] == {
        "version": "abc",
        "files": code_files("compare_systems.py", "needlework.scoring.pairing"),
    }
    assert record["packages"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"polars", "torch", "snakemake"} <= record["packages"].keys()
    assert record["device"]
    assert record["seconds"] >= 0
    assert json.loads(Path(f"{NOTES}.provenance.json").read_text()) == record


def test_the_record_has_the_commit_of_the_checkout():
    _job(WRITES)
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    git = json.loads(RECORD.read_text())["git"]
    assert (git or {"commit": ""})["commit"] == head.stdout.strip()


def test_outputs_appear_when_the_body_ends():
    done = _job(WRITES + '    assert not Path("results/out/table.txt").exists()\n')
    assert (done.status, TABLE.read_text()) == (0, "a table")


@pytest.mark.parametrize("error", ["ValueError", "OSError"])
def test_a_user_error_is_one_line_and_leaves_no_output(error):
    done = _job(WRITES + f'    raise {error}("rows.txt: no rows; add some")\n')
    assert done.status == 1
    (line,) = done.printed.splitlines()
    assert line.endswith("needlework: score_predictions: rows.txt: no rows; add some")
    assert Path("results/logs/job.log").read_text().splitlines() == [line]
    assert _outputs() == set()


def test_an_internal_error_keeps_its_traceback_and_leaves_no_output():
    done = _job(WRITES + "    print({}['absent'])\n")
    assert done.status == 1
    assert "KeyError: 'absent'" in done.printed
    assert "KeyError: 'absent'" in Path("results/logs/job.log").read_text()
    assert _outputs() == set()


def test_older_outputs_survive_a_failed_body():
    _job(WRITES)
    before = {path: path.read_bytes() for path in Path("results/out").iterdir()}
    done = _job(
        '    Path(s.output.table).write_text("half a ta")\n    raise ValueError("no more")\n'
    )
    assert done.status == 1
    assert {path: path.read_bytes() for path in Path("results/out").iterdir()} == before


def test_an_output_that_was_not_written_is_an_error():
    done = _job('    Path(s.output.table).write_text("a table")\n')
    assert done.status == 1
    assert len(done.printed.splitlines()) == 1
    assert "notes.txt" in done.printed
    assert _outputs() == set()


def test_the_next_job_removes_temporary_files_of_a_killed_one():
    body = WRITES + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert _job(body).status == -9
    assert all(name.startswith(".partial-") for name in _outputs())
    other = Path("results/out/.partial-1-b-table.txt")
    other.write_text("of another job")
    assert _job(WRITES).status == 0
    assert {name for name in _outputs() if name.startswith(".")} == {other.name}


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_changed_input_stops_the_job_before_its_body(damage):
    content = bytearray(Path("results/words.txt").read_bytes())
    if damage == "cut":
        del content[2:]
    else:
        content[2] ^= 1
    Path("results/words.txt").write_bytes(content)
    done = _job(WRITES)
    assert done.status == 1
    (line,) = done.printed.splitlines()
    assert "score_predictions: results/words.txt: changed since rule spell wrote it" in line
    assert line.endswith("; delete it and run again")
    assert _outputs() == set()


def test_outputs_follow_the_umask():
    body = WRITES + "    Path(s.output.table).chmod(0o600)\n"
    _job(body, umask=0o027)
    assert TABLE.stat().st_mode & 0o777 == 0o640


def test_files_of_a_folder_become_the_outputs_of_the_same_name():
    done = _job(
        """
    Path("made").mkdir()
    for name in ("table.txt", "notes.txt", "more.txt"):
        Path("made", name).write_text(name)
    s.collect_outputs("made")
"""
    )
    assert done.status == 0
    assert (TABLE.read_text(), NOTES.read_text()) == ("table.txt", "notes.txt")
    assert [path.name for path in Path("made").iterdir()] == ["more.txt"]


def test_package_versions_follow_pyproject(monkeypatch):
    (Path.cwd() / "pyproject.toml").write_text(
        '[project]\ndependencies = ["polars>=2,<3", "rich", "pyarrow[x]==1; python_version>\'3\'", '
        '"no-such-package~=1.0"]\n'
    )
    monkeypatch.setattr(stage_module, "WORKFLOW", Path.cwd())
    assert list(package_versions()) == ["python", "polars", "rich", "pyarrow"]


def test_a_wheel_in_another_repository_has_no_commit(monkeypatch):
    monkeypatch.setattr(stage_module, "IS_CHECKOUT", False)
    assert stage_module._git_state() is None
