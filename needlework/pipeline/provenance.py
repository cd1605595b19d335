"""Lineage: one JSON record beside each output says what made it; records together form a tree.

A record is `<output>.provenance.json`. Paths in it are relative to the folder that the workflow
runs in, as they stand in the rules.
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
    """Where the record of `output` lies."""
    return Path(f"{output}{SUFFIX}")


def write_record(output: str | Path, record: dict[str, Any]) -> None:
    """Write the record of `output`, whole or not at all."""
    path = record_path(output)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")
    partial.replace(path)


def read_record(output: str | Path) -> dict[str, Any] | None:
    """The record of `output`; None for a file that no stage made.

    Raises:
        ValueError: the record is not JSON, or lacks what every record has.
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
    raise ValueError(f"{path}: not a whole record; delete it and {output}, then run again")


def broken_input(path: str | Path) -> str | None:
    """One line if `path` is no longer what its record says it is, else None."""
    record = read_record(path)
    if record is None or record["outputs"].get(str(path)) == sha256_file(path):
        return None
    return (
        f"{path}: not as rule {record['rule']} wrote it (its sha256 differs from its record); "
        "delete it and run again"
    )


@dataclass
class Node:
    """A file in a lineage: its record (None for a source) and what it was made from."""

    path: str
    record: dict[str, Any] | None
    parents: list["Node"] = field(default_factory=list)


def lineage(path: str | Path) -> Node:
    """The tree of what `path` was made from, down to files that no stage made.

    Raises:
        ValueError: `path` does not exist, or lies outside the folder that the workflow runs in.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; name a file under results/")
    return _lineage(_as_recorded(path), {})


def _as_recorded(path: str | Path) -> str:
    relative = os.path.relpath(path)
    if relative.startswith(os.pardir):
        raise ValueError(f"{path}: lies outside this folder; go to where the workflow ran")
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
    """What `verify` found: links that do not hold, and every figure that stands on one."""

    checked: int
    broken: dict[str, str]
    """Path -> what is wrong, in the order of making: the first is the first that does not hold."""
    figures: dict[str, list[str]]
    """Broken path -> figures whose lineage has it."""
    unrecorded: list[str]
    """Files below the folder that no record speaks of."""


def verify(folder: str | Path) -> Verification:
    """Recompute the hash of every recorded output below `folder` and of every input they name.

    Raises:
        ValueError: `folder` has no record below it, or lies outside the folder that the workflow
            runs in.
    """
    folder = _as_recorded(folder)
    records = {
        str(path)[: -len(SUFFIX)]: read_record(str(path)[: -len(SUFFIX)])
        for path in sorted(Path(folder).rglob(f"*{SUFFIX}"))
    }
    if not records:
        raise ValueError(f"{folder}: nothing to verify; name a folder such as results/quick")
    hashes: dict[str, str | None] = {}

    def current(path: str) -> str | None:
        if path not in hashes:
            hashes[path] = sha256_file(path) if Path(path).is_file() else None
        return hashes[path]

    broken: dict[str, str] = {}
    for path in _in_order(records):
        record = records[path]
        for parent, then in record["inputs"].items():
            if parent in broken:
                continue
            now = current(parent)
            if now is None:
                broken[parent] = f"is missing, but {path} was made from it"
            elif now != then and parent not in records:
                broken[parent] = f"has changed since {path} was made from it"
        now, then = current(path), record["outputs"].get(path)
        if now is None:
            broken[path] = f"is missing, but rule {record['rule']} wrote it"
        elif now != then:
            broken[path] = f"is not as rule {record['rule']} wrote it"
    for path, record in records.items():
        for parent, then in record["inputs"].items():
            own = (records.get(parent) or {"outputs": {}})["outputs"].get(parent)
            if parent in records and own != then and parent not in broken:
                broken[path] = f"was made from another {parent} than the one that is there"
    figures = {path: _figures_on(path, records) for path in broken}
    known = set(records) | {str(record_path(path)) for path in records}
    unrecorded = [
        str(path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and str(path) not in known and not path.name.startswith(".")
    ]
    return Verification(len(hashes), broken, figures, unrecorded)


def _in_order(records: dict[str, dict]) -> Iterator[str]:
    """Paths such that each comes after those it was made from."""
    done: set[str] = set()

    def visit(path: str) -> Iterator[str]:
        if path in records and path not in done:
            done.add(path)
            for parent in records[path]["inputs"]:
                yield from visit(parent)
            yield path

    for path in records:
        yield from visit(path)


def _figures_on(path: str, records: dict[str, dict]) -> list[str]:
    standing = {path}
    for made in _in_order(records):
        if standing.intersection(records[made]["inputs"]):
            standing.add(made)
    return sorted(p for p in standing if "/figures/" in p and p in records)
