import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.pipeline.code_version import code_files

# A job as Snakemake starts it: its own namespace object in a process of its own.
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
class Done:
    status: int
    printed: str


def _job(body: str, *, umask: int = 0o022) -> Done:
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(body=body)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        umask=umask,
        check=False,
    )
    return Done(done.returncode, done.stdout + done.stderr)


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


def _made() -> set[str]:
    return {path.name for path in Path("results/out").glob("*")}


def test_outputs_come_whole_with_their_records():
    done = _job(WRITES)
    assert (done.status, done.printed) == (0, "")
    assert (TABLE.read_text(), NOTES.read_text()) == ("a table", "notes")
    assert _made() == {
        "table.txt",
        "table.txt.provenance.json",
        "notes.txt",
        "notes.txt.provenance.json",
    }
    assert Path("results/logs/job.log").is_file()


def test_the_record_says_what_made_the_output():
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


def test_the_record_has_the_commit_of_a_project_under_git():
    _job(WRITES)
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    git = json.loads(RECORD.read_text())["git"]
    assert (git or {"commit": ""})["commit"] == head.stdout.strip()


def test_outputs_are_not_there_before_the_body_ends():
    done = _job(WRITES + '    assert not Path("results/out/table.txt").exists()\n')
    assert (done.status, TABLE.read_text()) == (0, "a table")


@pytest.mark.parametrize("error", ["ValueError", "OSError"])
def test_what_the_user_has_to_mend_is_one_line_and_leaves_nothing(error):
    done = _job(WRITES + f'    raise {error}("rows.txt: no rows; add some")\n')
    assert done.status == 1
    (line,) = done.printed.splitlines()
    assert line.endswith("needlework: score_predictions: rows.txt: no rows; add some")
    assert Path("results/logs/job.log").read_text().splitlines() == [line]
    assert _made() == set()


def test_a_fault_of_the_program_keeps_its_traceback_and_leaves_nothing():
    done = _job(WRITES + "    print({}['absent'])\n")
    assert done.status == 1
    assert "KeyError: 'absent'" in done.printed
    assert "KeyError: 'absent'" in Path("results/logs/job.log").read_text()
    assert _made() == set()


def test_older_outputs_stay_when_the_body_fails():
    _job(WRITES)
    before = {path: path.read_bytes() for path in Path("results/out").iterdir()}
    done = _job(
        '    Path(s.output.table).write_text("half a ta")\n    raise ValueError("no more")\n'
    )
    assert done.status == 1
    assert {path: path.read_bytes() for path in Path("results/out").iterdir()} == before


def test_an_output_that_was_not_written_is_told():
    done = _job('    Path(s.output.table).write_text("a table")\n')
    assert done.status == 1
    assert len(done.printed.splitlines()) == 1
    assert "notes.txt" in done.printed
    assert _made() == set()


def test_a_killed_job_leaves_no_output_and_the_next_clears_up():
    body = WRITES + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert _job(body).status == -9
    assert all(name.startswith(".partial-") for name in _made())
    other = Path("results/out/.partial-1-b-table.txt")
    other.write_text("of another job")
    assert _job(WRITES).status == 0
    assert {name for name in _made() if name.startswith(".")} == {other.name}


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_an_input_that_is_not_as_written_stops_before_the_body(harm):
    content = bytearray(Path("results/words.txt").read_bytes())
    if harm == "cut":
        del content[2:]
    else:
        content[2] ^= 1
    Path("results/words.txt").write_bytes(content)
    done = _job(WRITES)
    assert done.status == 1
    (line,) = done.printed.splitlines()
    assert "score_predictions: results/words.txt: not as rule spell wrote it" in line
    assert line.endswith("; delete it and run again")
    assert _made() == set()


def test_outputs_are_as_readable_as_the_user_wants_them():
    body = WRITES + "    Path(s.output.table).chmod(0o600)\n"
    _job(body, umask=0o027)
    assert TABLE.stat().st_mode & 0o777 == 0o640


def test_files_of_a_folder_go_to_the_outputs_of_their_names():
    done = _job(
        """
    Path("made").mkdir()
    for name in ("table.txt", "notes.txt", "more.txt"):
        Path("made", name).write_text(name)
    s.adopt("made")
"""
    )
    assert done.status == 0
    assert (TABLE.read_text(), NOTES.read_text()) == ("table.txt", "notes.txt")
    assert [path.name for path in Path("made").iterdir()] == ["more.txt"]
