"""What every script needs: a log, one-line errors, whole outputs, a provenance record."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from needlework.pipeline.code_version import ROOT, code_files
from needlework.pipeline.provenance import broken_input, record_path, sha256_file, write_record

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One job, as its script sees it. `output` names temporary paths, renamed at the end."""

    input: Any
    output: SimpleNamespace
    params: Any
    wildcards: Any
    threads: int
    named: dict[str, str]
    hashes: dict[str, str]
    """sha256 of each input, by path."""
    key: str
    """A hash of what the outputs follow from: inputs, params and code."""

    def kept(self, what: str) -> Path:
        """A hidden file beside the first output that outlives a job that is killed."""
        first = Path(next(iter(self.named.values())))
        return first.with_name(f".{what}-{first.name}")

    def adopt(self, folder: str | Path) -> None:
        """Move files out of `folder` to the outputs that bear their names, or whose keys do."""
        for name, path in self.named.items():
            for file in (Path(path).name, f"{name}{Path(path).suffix}"):
                if (found := Path(folder) / file).is_file():
                    shutil.move(found, getattr(self.output, name))
                    break


@contextmanager
def stage(snakemake: Any) -> Iterator[Stage]:
    """Run the body as one stage of the workflow.

    Inputs that a stage made are checked against their records first. Outputs are written to
    temporary names beside their own and renamed when the body ends well; a record is written
    beside each. A ValueError from the body is what the user has to mend: it is printed as one line.
    """
    started = time.time()
    _log_to(snakemake.log[0] if snakemake.log else None)
    named = dict(snakemake.output.items())
    partial = {name: _partial(path) for name, path in named.items()}
    try:
        inputs = _hash_inputs(snakemake.input)
        for path in named.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        yield Stage(
            snakemake.input,
            SimpleNamespace(**{name: str(path) for name, path in partial.items()}),
            snakemake.params,
            snakemake.wildcards,
            snakemake.threads,
            named,
            inputs,
            _key(inputs, dict(snakemake.params.items())),
        )
        record = _record(snakemake, inputs, started)
        record["outputs"] = {str(named[name]): sha256_file(partial[name]) for name in named}
        for name, path in named.items():
            record_path(path).unlink(missing_ok=True)
            # Some savers make files that only their owner can read.
            partial[name].chmod(0o666 & ~_umask())
            partial[name].replace(path)
            write_record(path, record)
    except (ValueError, OSError) as error:
        _log.error("needlework: %s: %s", snakemake.rule, error)
        sys.exit(1)
    except Exception:
        _log.exception("needlework: %s: a fault of the program", snakemake.rule)
        sys.exit(1)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _partial(path: str) -> Path:
    # The suffix stays last: savers choose their format by it.
    return Path(path).with_name(f".partial-{os.getpid()}-{Path(path).name}")


def _remove_leftovers(path: str) -> None:
    """Remove what killed jobs left of `path`; a name may end in another's, so no glob."""
    leftover = re.compile(rf"\.partial-\d+-{re.escape(Path(path).name)}")
    for found in Path(path).parent.iterdir():
        if leftover.fullmatch(found.name):
            found.unlink(missing_ok=True)


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
    for noisy in ("httpx", "fsspec", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _hash_inputs(paths: Any) -> dict[str, str]:
    for path in paths:
        if (line := broken_input(path)) is not None:
            raise ValueError(line)
    return {str(path): sha256_file(path) for path in paths}


def _key(inputs: dict[str, str], params: dict[str, Any]) -> str:
    told = json.dumps([inputs, params], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


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
        "git": _git(),
        "device": device_name(),
        "threads": snakemake.threads,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
    }


def _script_name() -> str:
    # Not the rule's name: a rule may use another's script.
    return Path(sys.modules["__main__"].__file__).name


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that pyproject.toml names and this Python has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {"python": platform.python_version()}
    for requirement in project["dependencies"]:
        name = requirement.split("==")[0]
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hub_commits(params: dict[str, Any]) -> dict[str, str]:
    """The commit of each model that the hub gave, by its name."""
    # What opens a model has imported it; other stages have no need of it.
    hub = sys.modules.get("needlework.sources.hub")
    names = {params.get(name) for name in ("model", "base", "tokenizer")} - {None}
    found = {name: hub and hub.commit(name, params.get("revision")) for name in sorted(names)}
    return {name: commit for name, commit in found.items() if commit is not None}


def _git() -> dict[str, Any] | None:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}


def device_name() -> str:
    """The GPU that torch would use, if torch is loaded and there is one, else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
