"""What the store is said to hold, and what pruning deletes."""

import os
import time
from pathlib import Path

import pytest

from needlework.evaluation.answer_store import FACTS_FILE, AnswerStore
from needlework.evaluation.stored_answers import prune, stored_systems

DAY_SECONDS = 86400


def add(store: Path, system: str, threads: int, count: int) -> AnswerStore:
    label = {"system": system, "model": "models/tiny", "experiment": "quick"}
    answers = AnswerStore(store, {"device": "cpu", "threads": threads}, label)
    for number in range(count):
        row = {"prompt": str(number), "max_new_tokens": 4}
        answers.add(row, {"answer": {}, "measured": {}, "layers": []})
    return answers


def age(answers: AnswerStore, days: float) -> None:
    for path in answers.folder.iterdir():
        os.utime(path, (time.time() - days * DAY_SECONDS,) * 2)


def test_systems_are_listed_the_last_used_first(tmp_path: Path):
    age(add(tmp_path, "dense", 1, 3), days=2)
    add(tmp_path, "random", 2, 5)
    listed = list(stored_systems(tmp_path))
    assert [(one.system, one.answers, one.device) for one in listed] == [
        ("random", 5, "cpu"),
        ("dense", 3, "cpu"),
    ]


def test_pruning_spares_what_was_read_lately(tmp_path: Path):
    for threads, name in ((1, "dense"), (2, "random")):
        age(add(tmp_path, name, threads, 1), days=30)
    add(tmp_path, "dense", 1, 0)  # opens the store, as a run that finds every answer does
    assert [one.system for one in prune(tmp_path, 7)] == ["random"]
    assert [one.system for one in stored_systems(tmp_path)] == ["dense"]
    assert [one.system for one in prune(tmp_path, 0)] == ["dense"]
    assert list(stored_systems(tmp_path)) == []


def test_a_damaged_description_is_named(tmp_path: Path):
    folder = add(tmp_path, "dense", 1, 1).folder
    (folder / FACTS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"system\.json: is damaged; delete .*, whose answers"):
        list(stored_systems(tmp_path))
