"""Samples of a cell that are answered, so that a job that is killed goes on where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from needlework.evaluation.answer_journal import AnswerJournal

Entry = dict[str, Any]
"""What `generate_answers` found of a sample: answer, measured and layers."""


class AnswerCheckpoint:
    """Entries by sample: those of an earlier run, and each as soon as it is there.

    Args:
        path: the journal; None: nothing outlives the process.
        key: a hash of what the answers follow from. Entries of another are not found.
        is_main: whether this process, of those that share a model, writes.
        together: makes one entry of those of all such processes.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        key: str = "",
        is_main: bool = True,
        together: Callable[[Entry], Entry] = lambda entry: entry,
    ):
        self._journal = None if path is None else AnswerJournal(path)
        self._found = {} if self._journal is None else self._journal.load()
        self._key, self._is_main, self._together = key, is_main, together

    def get(self, sample: int) -> Entry | None:
        """What was found of a sample; None: it is to be answered."""
        return self._found.get(f"{self._key} {sample}")

    def add(self, sample: int, entry: Entry) -> Entry:
        """Keep what this process found of a sample; returns what all did."""
        entry = self._together(entry)
        if self._journal is not None and self._is_main:
            self._journal.add({"key": f"{self._key} {sample}", **entry})
        return entry
