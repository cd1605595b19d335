"""Whole runs with models behind an API: a server that fails at times, and `transformers serve`."""

import base64
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import psutil
import pytest
from support.api_server import ApiServer, serving
from support.project_copy import ROOT, Project

from needlework.tables import skipped

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]

# Split, as the test searches the project, which contains this file, for the key.
KEY = "-".join(["sk", "not", "to", "be", "found", "5d1c"])
TABLES = ("summary.csv", "failures.csv", "api_usage.csv", "comparison.md", "comparison_speed.json")


def experiment(url: str) -> dict:
    """Two systems on one API; the prompts of the second have a system message."""
    remote = {"api": url, "model": "m", "key_env": "THE_KEY", "retries": 1, "concurrency": 2}
    remote |= {"tokenizer": "base", "price": {"prompt": 1.0, "completion": 2.0}}
    return {
        "experiment": "small",
        "models": {
            "base": {"path": "resources/needlework-tiny"},
            "right": remote,
            "faulty": {**remote, "system_prompt": "Fail now and then."},
        },
        "systems": {"right": {"model": "right"}, "faulty": {"model": "faulty"}},
        "baseline": "right",
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [128],
        "depths": [0, 50],
        "samples": 12,
    }


def key_in(body: dict) -> str:
    """An answer with the needle in markup, and the API's key."""
    needle = re.search(r"\d{5}", body["messages"][-1]["content"]).group()
    return f"<script>alert('{needle}')</script> {KEY}"


def everything_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file as text, with tables and embedded parts of a report decoded."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield path, json.dumps(pl.read_parquet(path).to_dicts())
        elif path.is_file():
            text = path.read_bytes().decode(errors="replace")
            yield path, text
            for part in re.findall(r"base64,([A-Za-z0-9+/=]+)", text):
                yield path, base64.b64decode(part).decode(errors="replace")


def test_a_run_with_a_faulty_api(project: Project, monkeypatch: pytest.MonkeyPatch):
    draw, commands = random.Random(5), set()

    def fault(number: int, body: dict):
        commands.update(" ".join(_command(p)) for p in psutil.process_iter())
        if len(body["messages"]) == 1:
            return None
        refusal = f"too long: maximum context length <img src=x onerror=alert(1)> {KEY}"
        return draw.choice(["500", None, (400, {"error": {"message": refusal}})])

    monkeypatch.setenv("THE_KEY", KEY)
    server = ApiServer(key_in, fault)
    with serving(server):
        name = project.write(experiment(server.url))
        tables = [f"results/small/{table}" for table in TABLES]
        done = project.snakemake("--configfile", name, "--cores", "2", "--", *tables)
        assert done.returncode == 0, done.stdout + done.stderr
        count = len(server.requests)
        # An edit that does not affect answers causes no requests.
        other_price = experiment(server.url)
        other_price["models"]["right"]["price"] = {"prompt": 1000.0, "completion": 2.0}
        project.write(other_price)
        again = project.snakemake("--configfile", name, "--cores", "2", "--", *tables)
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(server.requests) == count
    report = project.snakemake("--configfile", name, "--report", "report.html", "--", *tables)
    assert report.returncode == 0, report.stdout + report.stderr

    assert {header["authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    results = project.root / "results/small"
    predictions = pl.read_parquet(results / "predictions/faulty.parquet")
    failed = predictions.filter(pl.col("status") != "ok")
    assert predictions["sample"].to_list() == list(range(12))
    assert 0 < len(failed) < 12
    listed = pl.read_csv(results / "failures.csv")
    assert listed.rows() == failed.select(listed.columns).rows()
    assert all(reason for reason in listed["reason"])
    summary = pl.read_csv(results / "summary.csv").filter(pl.col("depth_percent").is_null())
    (row,) = summary.filter(system="faulty", metric="all").rows(named=True)
    assert (row["n"], row["answered"]) == (12, 12 - len(failed))
    assert row["accuracy"] == pytest.approx(1 - len(failed) / 12, abs=1e-6)
    assert row["accuracy_answered"] == 1
    (speed,) = json.loads((results / "comparison_speed.json").read_text())
    assert speed["price_dollars_baseline"] > 100 * speed["price_dollars"] > 0
    usage = pl.read_csv(results / "api_usage.csv").filter(task="all")
    (faulty,) = usage.filter(system="faulty").rows(named=True)
    assert (faulty["samples"], faulty["answered"]) == (12, 12 - len(failed))
    assert faulty["requests"] > 12
    assert usage["price_dollars"].min() > 0

    # The server repeats the key in answers and errors, yet no file contains it.
    assert any("evaluate_api" in command for command in commands)
    assert not [command for command in commands if KEY in command]
    (project.root / "output.txt").write_text(done.stdout + done.stderr + report.stderr)
    seen = list(everything_in(project.root))
    assert not [path for path, text in seen if KEY in text]
    assert any("[key]" in text for path, text in seen if path.suffix == ".parquet")
    # Markup of the server does not become part of the report.
    html = (project.root / "report.html").read_text()
    assert "<img src=x" not in html
    assert "<script>alert" not in html


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_invalid_key_is_a_one_line_error(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THE_KEY", KEY)
    server = ApiServer(key_in, lambda n, body: (401, {"error": {"message": "Wrong key"}}))
    with serving(server):
        name = project.write(experiment(server.url))
        table = "results/small/predictions/right.parquet"
        done = project.snakemake("--configfile", name, "--cores", "1", "--", table)
    assert done.returncode != 0
    log = project.root / "results/small/logs/evaluate_api/right.log"
    (line,) = [line for line in log.read_text().splitlines() if "needlework:" in line]
    assert "rejects the key in THE_KEY (401: Wrong key)" in line
    assert len(server.requests) <= 2


def test_a_missing_key_is_a_one_line_error_before_any_work(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("THE_KEY", raising=False)
    name = project.write(experiment("http://127.0.0.1:9/v1"))
    done = project.needlework("run", "--configfile", name)
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        "needlework: models.right.key_env THE_KEY: is not set in the environment; "
        "export it, or write key_env: null for an API without a key"
    ]
    assert not (project.root / "results/small").exists()


def test_a_key_is_required_only_if_a_request_is_due(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    server = ApiServer(lambda body: "12345")
    with serving(server):
        config = experiment(server.url) | {"samples": 4, "baseline": None}
        config["models"]["right"]["test_mode"] = True
        del config["models"]["faulty"], config["systems"]["faulty"]
        name = project.write(config)
        table = project.root / "results/small/predictions/right.parquet"
        monkeypatch.setenv("THE_KEY", KEY)
        targets = ["--", str(table.relative_to(project.root))]
        done = project.snakemake("--configfile", name, "--cores", "1", *targets)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 5
        monkeypatch.delenv("THE_KEY")
        before = table.read_bytes()
        # A partial line, as if another job were writing: this one must not remove it.
        table.unlink()
        journal = table.with_name(".journal-right.jsonl")
        journal.write_bytes(journal.read_bytes() + b'{"key": ')
        done = project.needlework("run", "--configfile", name, "--cores", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert table.read_bytes() == before
        assert len(server.requests) == 5

        refusal = "needlework: models.right.key_env THE_KEY: is not set in the environment; "
        refusal += "export it, or write key_env: null for an API without a key"
        project.write(config | {"seed": 43})
        done = project.needlework("run", "--configfile", name, "--cores", "2")
        assert (done.returncode, done.stderr.splitlines()) == (1, [refusal])
        assert len(server.requests) == 5


def test_early_stopping_records_why_a_length_was_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    def fault(number: int, body: dict):
        if len(json.dumps(body)) < 1200:
            return None
        codes = ["context_length_exceeded", "content_filter"]
        if len(body["messages"]) == 1:
            codes = codes[:1]
        return 400, {"error": {"message": "No.", "code": codes[number % len(codes)]}}

    monkeypatch.setenv("THE_KEY", KEY)
    server = ApiServer(key_in, fault)
    with serving(server):
        name = project.write(
            experiment(server.url) | {"lengths": [128, 512, 640], "early_stopping": True}
        )
        folder = "results/small/predictions"
        tables = [f"{folder}/{system}.parquet" for system in ("right", "faulty")]
        done = project.snakemake("--configfile", name, "--cores", "1", "--", *tables)
    assert done.returncode == 0, done.stdout + done.stderr
    long, filtered = (skipped.read([project.root / path]).row(-1, named=True) for path in tables)
    assert (long["reason"], filtered["reason"]) == ("length refused", "every prompt refused")
    assert long["detail"] == "at 512: 400: No. (context_length_exceeded)"
    assert filtered["detail"].startswith("at 512: 400: No. (cont")


def test_other_experiments_have_no_api_jobs(project: Project):
    done = project.snakemake("-n", "--configfile", "config.yaml")
    assert done.returncode == 0
    assert "evaluate_system" in done.stdout
    assert "evaluate_api" not in done.stdout
    assert "list_failures" not in done.stdout


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """Run `transformers serve` for `model`; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", str(model), "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://localhost:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def test_transformers_serve_gives_the_answers_of_the_local_model(project: Project, tmp_path: Path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    tiny = ROOT / "resources/needlework-tiny"
    with transformers_serve(tiny, tmp_path / "serve.log") as url:
        served = {"api": url, "model": str(tiny), "tokenizer": "base", "endpoint": "completions"}
        name = project.write(
            {
                "experiment": "small",
                "models": {
                    "base": {"path": "resources/needlework-tiny", "allow_extrapolation": True},
                    "served": served,
                },
                "systems": {"here": {"model": "base"}, "served": {"model": "served"}},
                "tasks": {"passkey": {"type": "passkey"}},
                "lengths": [512, 3072, 8192],
                "depths": [0, 50],
                "samples": 4,
            }
        )
        tables = [f"results/small/scores/{system}.parquet" for system in ("here", "served")]
        done = project.snakemake("--configfile", name, "--cores", "1", "--", *tables)
        assert done.returncode == 0, done.stdout + done.stderr

    def table(stage: str, system: str) -> pl.DataFrame:
        return pl.read_parquet(project.root / f"results/small/{stage}/{system}.parquet")

    same = ["length", "sample", "prediction", "new_tokens", "stop_reason"]
    assert table("predictions", "here")[same].equals(table("predictions", "served")[same])
    scores = [table("scores", system).drop("system") for system in ("here", "served")]
    assert scores[0].equals(scores[1])
    for stage in ("predictions", "measurements"):
        local = table(stage, "here").schema
        assert dict(list(table(stage, "served").schema.items())[: len(local)]) == dict(local)
    assert set(table("predictions", "served")["status"]) == {"ok"}
    samples = pl.read_parquet(project.root / "results/small/samples/base/passkey/8192.parquet")
    counted = table("measurements", "served").filter(length=8192)["prompt_tokens"]
    assert counted.to_list() == samples["tokens"].to_list()
    assert counted.min() > 8_000
