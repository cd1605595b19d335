"""Provenance: a JSON record next to each output says what made it; records link into a tree.

A record is `<output>.provenance.json`. Its paths are relative to the folder that the workflow runs
in, as written in the rules.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIX = ".provenance.json"


def sha256_file(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(output: str | Path) -> Path:
    """Path of the record of `output`."""
    return Path(f"{output}{SUFFIX}")


def write_record(output: str | Path, record: dict[str, Any]) -> None:
    """Write the record of `output` atomically."""
    path = record_path(output)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")
    partial.replace(path)


def read_record(output: str | Path) -> dict[str, Any] | None:
    """The record of `output`; None for a file that no stage made.

    Raises:
        ValueError: the record is not JSON or lacks a required key.
    """
    path = record_path(output)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        if {"rule", "inputs", "outputs"} <= record.keys():
            return record
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path}: incomplete record; delete it and {output}, then run again")


def changed_input(path: str | Path) -> str | None:
    """An error message if `path` differs from its record, else None."""
    record = read_record(path)
    if record is None or record["outputs"].get(str(path)) == sha256_file(path):
        return None
    return (
        f"{path}: changed since rule {record['rule']} wrote it (its sha256 differs from its "
        "record); delete it and run again"
    )


@dataclass
class Node:
    """A file in a lineage: its record (None for a source) and the files it was made from."""

    path: str
    record: dict[str, Any] | None
    parents: list["Node"] = field(default_factory=list)


def lineage(path: str | Path) -> Node:
    """The tree of files that `path` was made from, down to files that no stage made.

    Raises:
        ValueError: `path` does not exist or is outside the folder that the workflow runs in.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; name a file in results/")
    return _lineage(_relative(path), {})


def _relative(path: str | Path) -> str:
    relative = os.path.relpath(path)
    if relative.startswith(os.pardir):
        raise ValueError(f"{path}: is outside this folder; change to the folder of the run")
    return relative


def _lineage(path: str, known: dict[str, Node]) -> Node:
    if path not in known:
        record = read_record(path)
        node = known[path] = Node(path, record)
        if record is not None:
            node.parents = [_lineage(parent, known) for parent in record["inputs"]]
    return known[path]


@dataclass
class Verification:
    """The result of `verify`: invalid files, and the figures that depend on each."""

    checked: int
    invalid: dict[str, str]
    """Path -> what is wrong, in build order: the first is the root of the problem."""
    figures: dict[str, list[str]]
    """Invalid path -> figures that were made from it."""
    unrecorded: list[str]
    """Files in the folder that no record mentions."""


def verify(folder: str | Path) -> Verification:
    """Recompute the hash of every recorded output in `folder` and of their inputs.

    Raises:
        ValueError: `folder` holds no records or is outside the folder that the workflow runs in.
    """
    folder = _relative(folder)
    records = _records(folder)
    if not records:
        raise ValueError(f"{folder}: nothing to verify; name a folder such as results/quick")
    hashes: dict[str, str | None] = {}

    def current(path: str) -> str | None:
        if path not in hashes:
            hashes[path] = sha256_file(path) if Path(path).is_file() else None
        return hashes[path]

    invalid: dict[str, str] = {}
    for path in _in_build_order(records):
        record = records[path]
        for parent, recorded in record["inputs"].items():
            if parent in invalid:
                continue
            now = current(parent)
            if now is None:
                invalid[parent] = f"is missing, but {path} was made from it"
            elif now != recorded and parent not in records:
                invalid[parent] = f"has changed since {path} was made from it"
        now, recorded = current(path), record["outputs"].get(path)
        if now is None:
            invalid[path] = f"is missing, but rule {record['rule']} wrote it"
        elif now != recorded:
            invalid[path] = f"has changed since rule {record['rule']} wrote it"
    for path, record in records.items():
        for parent, recorded in record["inputs"].items():
            if (
                parent in records
                and records[parent]["outputs"].get(parent) != recorded
                and parent not in invalid
            ):
                invalid[path] = f"was made from an older version of {parent}"
    known = set(records) | {str(record_path(path)) for path in records}
    return Verification(
        checked=len(hashes),
        invalid=invalid,
        figures={path: _dependent_figures(path, records) for path in invalid},
        unrecorded=[
            str(path)
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and str(path) not in known and not path.name.startswith(".")
        ],
    )


def _records(folder: str) -> dict[str, dict[str, Any]]:
    """Every record in `folder`, by the path of its output."""
    outputs = [str(path)[: -len(SUFFIX)] for path in sorted(Path(folder).rglob(f"*{SUFFIX}"))]
    records = {output: read_record(output) for output in outputs}
    return {output: record for output, record in records.items() if record is not None}


def _in_build_order(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Paths of the records, each after the paths it was made from."""
    done: set[str] = set()

    def visit(path: str) -> Iterator[str]:
        if path in records and path not in done:
            done.add(path)
            for parent in records[path]["inputs"]:
                yield from visit(parent)
            yield path

    for path in records:
        yield from visit(path)


def _dependent_figures(path: str, records: dict[str, dict[str, Any]]) -> list[str]:
    dependent = {path}
    for output in _in_build_order(records):
        if dependent.intersection(records[output]["inputs"]):
            dependent.add(output)
    return sorted(p for p in dependent if "/figures/" in p and p in records)
