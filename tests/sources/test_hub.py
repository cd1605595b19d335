"""Hub names, against a real server: errors are one line, and downloads open."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.hub_server import Hub, commit_of, serving
from support.paths import ROOT

pytestmark = pytest.mark.slow

TINY = ROOT / "resources" / "needlework-tiny"
TOKENIZER = """
import sys
from needlework.tasks.prompts.tokenizer import tokenizer_folder
for name in sys.argv[1:]:
    try:
        print(tokenizer_folder(*name.split("@")))
    except ValueError as error:
        print(error)
"""
MAIN = "from needlework.cli.app import main; main()"
GATED = "is gated on the hub; accept its licence there and set HF_TOKEN, or name a folder that"
UNKNOWN = "the hub has no such model, or it is private; correct the name, or set HF_TOKEN"
REVISION = "the hub has no such revision; correct revision, or remove it"
TOKEN = (
    "the hub refuses the token; set HF_TOKEN to a valid one, or for a public model remove it (also"
)
BARE = "cannot be opened as a checkpoint ("
DOWN = "the hub answers 503; try later, or name a folder that holds it"
NO_HUB = "no such folder, and the hub cannot be reached (no connection to {url}: "


def python(hub: Hub, cache: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env={**hub.environment(cache), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def planned(hub: Hub, folder: Path, *names: str) -> tuple[list[str], str]:
    """The lines of a plan on each model, which two systems have, and all of stderr."""
    models = {}
    for i, name in enumerate(names):
        path, _, revision = name.partition("@")
        models[f"m{i}"] = {"path": path, "revision": revision or None}
    systems = {f"{s}-{m}": {"model": m} for m in models for s in "ab"}
    experiment = {"experiment": "small", "models": models, "systems": systems}
    experiment |= {"tasks": {"passkey": {"type": "passkey"}}, "lengths": [128, 256]}
    (folder / "small.yaml").write_text(yaml.safe_dump(experiment))
    done = python(hub, folder / "cache", "-c", MAIN, "plan", str(folder / "small.yaml"))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "no estimate" in line]
    return [line.removeprefix(f"a-m{i}, b-m{i}: ") for i, line in enumerate(lines)], done.stderr


REFUSED = {
    "nobody/gated": GATED,
    "nobody/private": UNKNOWN,
    "nobody/missing": UNKNOWN,
    "nobody/tiny@v9": REVISION,
    "nobody/no-token": TOKEN,
}


@pytest.fixture
def hub(tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "README.md").write_text("nothing else")
    with serving(Hub({"tiny": {"main": TINY, "v1": TINY}, "bare": {"main": bare}})) as hub:
        yield hub


def test_a_plan_explains_each_hub_error_once(hub: Hub, tmp_path: Path):
    expected = REFUSED | {"nobody/bare": BARE}
    lines, stderr = planned(hub, tmp_path, *expected)
    assert len(lines) == len(expected)
    for i, (line, (name, reason)) in enumerate(zip(lines, expected.items(), strict=True)):
        path = name.partition("@")[0]
        assert line.startswith(f"no estimate: models.m{i}.path = {path}: {reason}"), line
    assert stderr == ""


@pytest.mark.parametrize("key", ["path", "tokenizer"])
def test_a_run_fails_with_the_hub_error_before_any_work(hub: Hub, tmp_path: Path, key: str):
    model = {"path": "nobody/gated"}
    if key == "tokenizer":
        model = {"api": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": "far"}
    models = {"base": model, "far": {"path": "nobody/private"}}
    experiment = {"experiment": "small", "models": models, "systems": {"a": {"model": "base"}}}
    experiment |= {"tasks": {"passkey": {"type": "passkey"}}, "lengths": [128]}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(experiment))
    done = python(hub, tmp_path / "cache", "-c", MAIN, "run", "--configfile", str(file))
    assert done.returncode == 1
    expected = {"path": f"base.path = nobody/gated: {GATED}"}
    expected["tokenizer"] = f"far.path = nobody/private: {UNKNOWN}"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"needlework: models.{expected[key]}")
    assert done.stdout == ""


def test_a_tokenizer_fails_with_the_hub_error(hub: Hub, tmp_path: Path):
    expected = REFUSED | {"nobody/down": DOWN}
    lines = python(hub, tmp_path / "cache", "-c", TOKENIZER, *expected).stdout.splitlines()
    assert len(lines) == len(expected)
    for line, (name, reason) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"{name.partition('@')[0]}: {reason}"), line


def test_without_a_network_only_cached_models_open(hub: Hub, tmp_path: Path):
    got = python(hub, tmp_path / "cache", "-c", TOKENIZER, "nobody/tiny@v1").stdout.strip()
    assert Path(got).name == commit_of("v1")
    assert (Path(got) / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hub.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    done = python(hub, tmp_path / "cache", "-c", TOKENIZER, "nobody/tiny@v1", "nobody/other")
    opened, line = done.stdout.splitlines()
    assert opened == got
    assert line.startswith(f"nobody/other: {NO_HUB.format(url=hub.url)}")
    assert done.stderr == ""
    hub.url = hub.url.replace("//", "//me:secret@")
    lines, stderr = planned(hub, tmp_path, "nobody/other")
    (line,) = lines
    assert NO_HUB.format(url=hub.url.replace("me:secret@", "")) in line
    assert line.startswith("no estimate: models.m0.path = nobody/other: no such folder, and the")
    # Retries of the hub's library are not shown either.
    assert stderr == ""


def test_an_invalid_name_is_reported_as_a_missing_folder(hub: Hub, tmp_path: Path):
    line = python(hub, tmp_path / "cache", "-c", TOKENIZER, "no/such/folder").stdout
    assert (
        line == "no/such/folder: no such folder; name an existing one, or owner/name on the hub\n"
    )


def test_a_tokenizer_is_fetched_with_every_file_that_is_read(tmp_path):
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    read = [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model"),
        *("additional_chat_templates/rag.jinja", "processor_config.json", "merges.txt"),
    ]
    for name in [*read, "model.safetensors", "README.md"]:
        (folder / name).write_text("{}")
    with serving(Hub({"model": {"main": folder}})) as hub:
        done = python(hub, tmp_path / "cache", "-c", TOKENIZER, "nobody/model")
    fetched = Path(done.stdout.strip())
    files = {str(file.relative_to(fetched)) for file in fetched.rglob("*") if file.is_file()}
    assert files == set(read), done.stderr
