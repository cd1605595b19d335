"""Answered samples of a cell, kept on disk so that an interrupted job can resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from needlework.evaluation.answer_journal import AnswerJournal

Entry = dict[str, Any]
"""Results of `generate_answers` for one sample: answer, measured and layers."""


class AnswerCheckpoint:
    """Entries by sample, from an earlier run and from this one.

    Args:
        path: the journal; None: keep nothing.
        key: a hash of everything the answers depend on; entries with another key are ignored.
        is_main: whether this process writes, if several share a model.
        merge: combines the entries of all processes that share a model.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        key: str = "",
        is_main: bool = True,
        merge: Callable[[Entry], Entry] = lambda entry: entry,
    ):
        self._journal = None if path is None else AnswerJournal(path)
        self._entries = {} if self._journal is None else self._journal.load()
        self._key, self._is_main, self._merge = key, is_main, merge

    def get(self, sample: int) -> Entry | None:
        """Return the entry of an answered sample, or None."""
        return self._entries.get(f"{self._key} {sample}")

    def add(self, sample: int, entry: Entry) -> Entry:
        """Keep this process's entry of a sample; return the merged entry of all processes."""
        entry = self._merge(entry)
        if self._journal is not None and self._is_main:
            self._journal.add({"key": f"{self._key} {sample}", **entry})
        return entry
