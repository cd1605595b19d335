"""A file that keeps each answer as soon as it arrives, so that none is computed or paid twice."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)


class AnswerJournal:
    """Append-only JSON lines, each flushed to disk before the next step.

    The `key` of an entry is a hash of everything the answer depends on. Entries never go stale: a
    changed request has another key.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def load(self) -> dict[str, dict[str, Any]]:
        """Read entries by key, and remove a last line that a kill or a full disk cut short.

        Raises:
            ValueError: a complete line is not an entry.
        """
        if not self.path.exists():
            return {}
        complete = self._complete_lines()
        if len(complete) < self.path.stat().st_size:
            os.truncate(self.path, len(complete))
        return self.read()

    def read(self) -> dict[str, dict[str, Any]]:
        """Read entries by key without changing the file, which another process may be writing.

        Raises:
            ValueError: as `load`.
        """
        if not self.path.exists():
            return {}
        entries = {}
        for number, line in enumerate(self._complete_lines().splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}:{number}: is not a journal entry; delete the line to answer its "
                    "sample again"
                ) from None
        return entries

    def _complete_lines(self) -> bytes:
        content = self.path.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, which must have a `key`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def journal_path(predictions: str | Path) -> Path:
    """Path of the journal that belongs to an API's table of predictions."""
    return Path(predictions).with_name(f".journal-{Path(predictions).stem}.jsonl")


@contextmanager
def exclusive_lock(path: str | Path) -> Iterator[None]:
    """Hold a lock on `path`, waiting for other processes; a process that dies releases it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.info("%s: another job is using this API; waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
