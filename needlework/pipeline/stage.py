"""What every stage script needs: a log, one-line errors, atomic outputs, a provenance record."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from needlework.pipeline.code_version import code_files
from needlework.pipeline.provenance import changed_input, record_path, sha256_file, write_record
from needlework.runtime.device import device_name
from needlework.runtime.locations import IS_CHECKOUT, WORKFLOW

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One Snakemake job, as its script sees it."""

    input: Any
    output: SimpleNamespace
    """Temporary path of each output; the script writes these, `stage` renames them."""
    params: Any
    wildcards: Any
    threads: int
    output_paths: dict[str, str]
    """Final path of each output, by its name in the rule."""
    input_hashes: dict[str, str]
    """sha256 of each input, by path."""
    key: str
    """Hash of everything the outputs depend on: inputs, params and code."""
    notes: dict[str, Any]
    """JSON values that the body adds to the record of its outputs."""

    def checkpoint_path(self, kind: str) -> Path:
        """A hidden file next to the first output; it survives when the job is killed."""
        first = Path(next(iter(self.output_paths.values())))
        return first.with_name(f".{kind}-{first.name}")

    def collect_outputs(self, folder: str | Path) -> None:
        """Move files from `folder` to the outputs that have their name, or their name as key."""
        for name, path in self.output_paths.items():
            for filename in (Path(path).name, f"{name}{Path(path).suffix}"):
                if (file := Path(folder) / filename).is_file():
                    shutil.move(file, getattr(self.output, name))
                    break


@contextmanager
def stage(snakemake: Any) -> Iterator[Job]:
    """Run the body of a stage script.

    Inputs that other stages made are checked against their provenance records first. Outputs are
    written under temporary names, renamed when the body succeeds, and get a record each. A
    ValueError or OSError in the body is a user error: one line is logged, without a traceback.
    """
    started = time.time()
    _log_to(snakemake.log[0] if snakemake.log else None)
    outputs = dict(snakemake.output.items())
    temporary = {name: _temporary_path(path) for name, path in outputs.items()}
    notes: dict[str, Any] = {}
    try:
        inputs = _hash_inputs(snakemake.input)
        for path in outputs.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        yield Job(
            input=snakemake.input,
            output=SimpleNamespace(**{name: str(path) for name, path in temporary.items()}),
            params=snakemake.params,
            wildcards=snakemake.wildcards,
            threads=snakemake.threads,
            output_paths=outputs,
            input_hashes=inputs,
            key=_key(inputs, dict(snakemake.params.items())),
            notes=notes,
        )
        record = _record(snakemake, inputs, started) | notes
        record["outputs"] = {str(outputs[name]): sha256_file(temporary[name]) for name in outputs}
        for name, path in outputs.items():
            record_path(path).unlink(missing_ok=True)
            # Some libraries create files that only their owner can read.
            temporary[name].chmod(0o666 & ~_umask())
            temporary[name].replace(path)
            write_record(path, record)
    except (ValueError, OSError) as error:
        _log.error("needlework: %s: %s", snakemake.rule, error)
        sys.exit(1)
    except Exception:
        _log.exception("needlework: %s: internal error", snakemake.rule)
        sys.exit(1)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _temporary_path(path: str) -> Path:
    # Keep the suffix: libraries choose the format by it.
    return Path(path).with_name(f".partial-{os.getpid()}-{Path(path).name}")


def _remove_leftovers(path: str) -> None:
    """Remove temporary files of `path` that killed jobs left."""
    # No glob: the name may be the end of another output's name.
    leftover = re.compile(rf"\.partial-\d+-{re.escape(Path(path).name)}")
    for file in Path(path).parent.iterdir():
        if leftover.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _log_to(path: str | None) -> None:
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="w"))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True
    )
    for verbose_library in ("httpx", "fsspec", "urllib3", "filelock"):
        logging.getLogger(verbose_library).setLevel(logging.WARNING)


def _hash_inputs(paths: Iterable[str]) -> dict[str, str]:
    for path in paths:
        if (problem := changed_input(path)) is not None:
            raise ValueError(problem)
    return {str(path): sha256_file(path) for path in paths}


def _key(inputs: dict[str, str], params: dict[str, Any]) -> str:
    content = json.dumps([inputs, params], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _record(snakemake: Any, inputs: dict[str, str], started: float) -> dict[str, Any]:
    params = {name: value for name, value in snakemake.params.items() if name != "code"}
    modules = params.pop("modules", [])
    return {
        "rule": snakemake.rule,
        "wildcards": dict(snakemake.wildcards.items()),
        "params": params,
        "inputs": inputs,
        "code": {
            "version": snakemake.params.get("code"),
            "files": code_files(_script_name(), *modules),
        },
        "packages": package_versions(),
        "hub": _hub_commits(params),
        "git": _git_state(),
        "device": device_name(),
        "threads": snakemake.threads,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
    }


def _script_name() -> str:
    # Not the rule's name: a rule may use the script of another.
    file = sys.modules["__main__"].__file__
    assert file is not None, "a stage runs as a script"
    return Path(file).name


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that pyproject.toml requires."""
    project = tomllib.loads((WORKFLOW / "pyproject.toml").read_text())["project"]
    versions = {"python": platform.python_version()}
    for requirement in project["dependencies"]:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hub_commits(params: dict[str, Any]) -> dict[str, str]:
    """The commit of each model that was opened from the hub, by its name."""
    # Stages that open a model have imported this module; others need not.
    hub = sys.modules.get("needlework.sources.hub")
    if hub is None:
        return {}
    # `model` is a ModelSpec as JSON values; a tokenizer is its path.
    opened = [params[name] for name in ("model", "tokenizer") if params.get(name) is not None]
    sources = [
        (spec["path"], spec["revision"])
        if isinstance(spec, dict)
        else (spec, params.get("revision"))
        for spec in opened
    ]
    commits = {path: hub.commit(path, revision) for path, revision in sources}
    return {name: commit for name, commit in commits.items() if commit is not None}


def _git_state() -> dict[str, Any] | None:
    """The commit of this checkout and whether files differ from it; None outside of git."""

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(WORKFLOW), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # A wheel may be installed below an unrelated repository.
    commit = git("rev-parse", "HEAD") if IS_CHECKOUT else None
    if not commit:
        return None
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}
