"""Answers kept for good: one folder for all experiments, in which each answer has a key.

The key is a hash of everything that the answer depends on, so no entry ever goes stale, and an
answer that another run, experiment or system of the same parameters made is not made again.

A folder of the store holds the answers of one system. Every job appends to a file of its own there
and reads those of all others. No file has two writers, so the store needs no locks, which network
file systems often lack, and a job that is killed loses at most the line it was writing. Each line
starts with a hash of its content; a damaged line is ignored, and its sample answered again.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
FACTS_FILE = "system.json"
"""File with the facts of a system's answers; its time is that of their last use."""
_HASH_DIGITS = 16

Entry = dict[str, Any]
"""One answered sample: `answer`, `measured`, and `layers` with densities."""


class AnswerStore:
    """The answers of one system, by prompt.

    Args:
        folder: of the whole store; None: keep answers in memory only.
        facts: everything that the system's answers depend on, as JSON values.
        label: names of the system and its model, for a reader; not part of the key.
        is_main: whether this process writes, if several share a model.
        merge: combines the entries of all processes that share a model.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        facts: dict[str, Any] | None = None,
        label: dict[str, Any] | None = None,
        is_main: bool = True,
        merge: Callable[[Entry], Entry] = lambda entry: entry,
    ):
        self._arguments = {"folder": folder and str(folder), "facts": facts, "label": label}
        key = _digest(json.dumps(facts or {}, sort_keys=True))[:32]
        self.folder = None if folder is None else Path(folder) / key
        self.added = 0
        """Answers that this object added."""
        self._is_main, self._merge = is_main, merge
        self._segment: Path | None = None
        self._entries: dict[str, Entry] = {}
        self.load()

    def arguments(self) -> dict[str, Any]:
        """Arguments, as JSON values, that open the same store in another process."""
        return self._arguments

    def load(self) -> None:
        """Read the answers of all jobs so far."""
        if self.folder is not None and self.folder.is_dir():
            # Results may be read-only.
            with suppress(OSError):
                os.utime(self.folder / FACTS_FILE)
            for segment in sorted(self.folder.glob("*.jsonl")):
                self._entries |= dict(_entries_of(segment))

    def get(self, sample: dict[str, Any]) -> Entry | None:
        """The entry of a sample, a row of a table of samples; None if it has no answer."""
        return self._entries.get(_sample_key(sample))

    def add(self, sample: dict[str, Any], entry: Entry) -> Entry:
        """Keep this process's entry of a sample; return the merged entry of all processes."""
        entry = self._merge(entry)
        key = _sample_key(sample)
        self._entries[key] = entry
        self.added += 1
        if self.folder is not None and self._is_main:
            self._append(json.dumps([key, entry]))
        return entry

    def _append(self, content: str) -> None:
        if self._segment is None:
            assert self.folder is not None
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_facts(self.folder / FACTS_FILE)
            self._segment = self.folder / f"{uuid.uuid4().hex}.jsonl"
        with self._segment.open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{_digest(content)[:_HASH_DIGITS]} {content}\n")
            file.flush()
            os.fsync(file.fileno())

    def _write_facts(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        about = {name: self._arguments[name] for name in ("label", "facts")}
        partial.write_text(json.dumps(about, indent=1) + "\n")
        partial.replace(path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sample_key(sample: dict[str, Any]) -> str:
    parts = [sample["prompt"], sample.get("control_spans"), sample["max_new_tokens"]]
    return _digest(json.dumps(parts))[:32]


def _entries_of(segment: Path) -> Iterator[tuple[str, Entry]]:
    """Keys and entries of a file's complete lines."""
    content = segment.read_bytes()
    damaged = 0
    # A job that was killed, or still writes, leaves a last line without its end.
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        digest, _, text = line.decode(errors="replace").partition(" ")
        if _digest(text)[:_HASH_DIGITS] == digest:
            key, entry = json.loads(text)
            yield key, entry
        else:
            damaged += 1
    if damaged:
        _log.warning("%s: %d damaged answers; their samples are answered again", segment, damaged)
