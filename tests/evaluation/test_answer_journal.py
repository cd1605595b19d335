"""The journal of answers and the lock of an API."""

import subprocess
import sys
from pathlib import Path

import pytest

from needlework.evaluation.answer_journal import AnswerJournal, exclusive_lock


def test_a_truncated_last_line_is_removed(tmp_path: Path):
    journal = AnswerJournal(tmp_path / "j")
    assert journal.load() == {}
    entries = [{"key": str(i), "answer": {"text": "a\nb\u2028ö"}} for i in range(3)]
    for entry in entries:
        journal.add(entry)
    content = journal.path.read_bytes()
    for cut in (1, 20):
        journal.path.write_bytes(content[:-cut])
        assert list(journal.load().values()) == entries[:2]
        journal.add(entries[2])
        assert journal.path.read_bytes() == content
    journal.path.write_bytes(b"no JSON\n" + content)
    with pytest.raises(ValueError, match=r"j:1: is not a journal entry; delete the line"):
        journal.load()


_HOLD_LOCK = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from needlework.evaluation.answer_journal import exclusive_lock
with exclusive_lock(sys.argv[1]):
    print("locked")
"""


def test_jobs_of_one_api_wait_for_each_other(tmp_path: Path):
    lock = tmp_path / "lock"
    command = [sys.executable, "-u", "-c", _HOLD_LOCK, str(lock)]
    with exclusive_lock(lock):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline().endswith("another job is using this API; waiting for it\n")
    assert other.communicate()[0] == "locked\n"
