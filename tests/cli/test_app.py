"""The command line: output of lineage, verify, check and schema; errors; help."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from typer.testing import CliRunner

from needlework.cli.app import app, main
from needlework.config.schema import experiment_schema
from needlework.pipeline import provenance

pytestmark = pytest.mark.slow

SAMPLES, SUMMARY = "results/trial/samples.parquet", "results/trial/summary.parquet"
COMMANDS = (
    *("init", "check", "plan", "run", "export", "answers", "lineage", "verify"),
    *("niah", "stream", "schema"),
)
FIGURE = "results/trial/figures/accuracy.svg"


def _make(path: str, parents: list[str], rule: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(path)
    record = {
        "rule": rule,
        "inputs": {parent: provenance.sha256_file(parent) for parent in parents},
        "outputs": {path: provenance.sha256_file(path)},
        "code": {"version": f"code-of-{rule}"},
        "git": {"commit": "0123456789abcdef", "changed": True},
        "started": "2026-01-02T03:04:05Z",
        "seconds": 1.5,
        "device": "an abacus",
    }
    provenance.write_record(path, record)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.json").write_text("{}")
    _make(SAMPLES, ["tokenizer.json"], "generate_samples")
    _make(SUMMARY, [SAMPLES], "summarize_scores")
    _make(FIGURE, [SUMMARY, SAMPLES], "plot_accuracy")
    return tmp_path


def test_lineage_reaches_the_sources(run):
    result = CliRunner().invoke(app, ["lineage", FIGURE])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    files = [FIGURE, SAMPLES, "tokenizer.json", SUMMARY, SAMPLES]
    shown = [line for line in lines if "results/" in line or "tokenizer" in line]
    assert len(shown) == len(files)
    for line, path in zip(shown, files, strict=True):
        assert path in line
    for path in (FIGURE, SUMMARY, SAMPLES):
        assert provenance.sha256_file(path)[:12] in result.stdout
    assert "source" in shown[2]
    assert "above" in shown[4]
    assert (
        "rule plot_accuracy, code code-of-plot_accuracy, commit 0123456789 with changes" in lines[1]
    )
    assert "2026-01-02T03:04:05Z, 1.5 s on an abacus" in lines[1]


def test_verify_counts_valid_files(run):
    result = CliRunner().invoke(app, ["verify", "results/trial"])
    assert (result.exit_code, result.stdout) == (
        0,
        "4 files verified: every hash in results/trial is valid\n",
    )


def test_verify_lists_invalid_files_and_dependent_figures(run):
    Path(SAMPLES).write_text("others")
    result = CliRunner().invoke(app, ["verify", "results/trial"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"invalid {SAMPLES} has changed since rule generate_samples wrote it",
        f"        depends on it: {FIGURE}",
        "1 of 4 files are invalid; to rebuild the first and everything that depends on it, add to "
        "the run:",
        f"--forcerun {SAMPLES}",
    ]


def test_check_counts_the_answers(monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["check", "config.yaml"])
    assert result.exit_code == 0
    assert result.stdout.startswith("config.yaml: valid; ")


def test_a_plan_of_an_api_alone_has_tokens_and_dollars_but_no_device(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "remote.yaml"
    file.write_text(
        """
experiment: remote
models:
  remote:
    api: http://127.0.0.1:1/v1
    model: m
    key_env: null
    tokenizer: resources/needlework-tiny
    price: {prompt: 10.0, completion: 100.0}
systems: {remote: {model: remote}}
tasks: {passkey: {type: passkey}}
lengths: [512, 1024]
samples: 10
"""
    )
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 0, result.output
    assert "prefill" not in result.stdout
    # 10 prompts of at most 512 and 1024 tokens, with 10 tokens of answer each.
    assert "at most $0.17" in result.stdout


def test_export_plans_the_files_of_other_tools(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["export", "config.yaml", "--cores", "1", "-n", "--forceall"])
    assert result.exit_code == 0, result.output
    planned = capfd.readouterr().out
    for rule in ("export_ruler", "export_kvpress", "export_dataset"):
        assert rule in planned


def test_committed_reference_is_up_to_date():
    schema = CliRunner().invoke(app, ["schema"])
    assert json.loads(schema.stdout) == experiment_schema()
    page = CliRunner().invoke(app, ["schema", "--markdown"])
    assert page.stdout == (ROOT / "config/README.md").read_text(), (
        "run: needlework schema --markdown > config/README.md"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lineage", "none.svg"], "none.svg: no such file; name a file in results/"),
        (["verify", "none"], "none: nothing to verify; name a folder such as results/quick"),
        (["check", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["check", "bad.yaml"], "bad.yaml:2: sampels = 3: unknown key; did you mean `samples`?"),
        (["run", "--configfile", "bad.yaml"], "bad.yaml:2: sampels = 3: unknown key; did you"),
        (["run", "bad.yaml", "--forcerun", "x"], "bad.yaml:2: sampels = 3: unknown key; did you"),
        (["run", "--forcerun", "bad.yaml"], "config.yaml: no such file; name an experiment file"),
    ],
)
def test_a_user_error_is_one_line(tmp_path, monkeypatch, capfd, args, message):
    text = (ROOT / "config.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(f"# wrong\nsampels: 3\n{text}")
    shutil.copytree(ROOT / "resources", tmp_path / "resources")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["needlework", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    # Python prints a message that is not a status, and exits with status 1.
    assert str(ended.value).startswith(f"needlework: {message}")
    assert "\n" not in str(ended.value)
    assert capfd.readouterr() == ("", "")


def test_the_module_runs_the_command_and_exits_with_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "needlework", "check", "none.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "needlework: none.yaml: cannot be read: No such file or directory\n"


def test_help_lists_every_command():
    shown = CliRunner().invoke(app, []).output
    assert "Usage" in shown
    for name in COMMANDS:
        assert f" {name} " in shown


def test_shells_complete_the_commands(monkeypatch, capsys):
    monkeypatch.setenv("_NEEDLEWORK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "needlework ni")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr(sys, "argv", ["needlework"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out.split() == ["niah"]
