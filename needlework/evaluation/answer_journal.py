"""Answers that were paid for, on disk as soon as they are there."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class AnswerJournal:
    """One JSON object a line, each on the disk before the next thing is done.

    An entry is found by its `key`, a hash of all that the answer follows from, so entries never go
    stale: what is asked otherwise has another key.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def load(self) -> dict[str, dict[str, Any]]:
        """Entries by key. A line that a kill or a full disk cut short is taken off the file.

        Raises:
            ValueError: a whole line is no entry.
        """
        if not self.path.exists():
            return {}
        whole = self._whole_lines()
        if len(whole) < self.path.stat().st_size:
            os.truncate(self.path, len(whole))
        return self.read()

    def read(self) -> dict[str, dict[str, Any]]:
        """As `load`, for one who adds nothing: another process may be at work on the last line."""
        if not self.path.exists():
            return {}
        whole, found = self._whole_lines(), {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                found[entry["key"]] = entry
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}:{number}: no entry of a journal; delete the line, and that "
                    "sample is asked again"
                ) from None
        return found

    def _whole_lines(self) -> bytes:
        content = self.path.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry; it has a `key`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def journal_of(predictions: str | Path) -> Path:
    """Where the answers lie that a table of an API's predictions is made of."""
    return Path(predictions).with_name(f".journal-{Path(predictions).stem}.jsonl")


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Wait until no other process holds `path`, and hold it; it is let go if this one dies."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another job asks this API; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
