"""Answers by content: what finds them again, and what damage costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import PYTHONPATH

from needlework.evaluation.answer_store import AnswerStore

FACTS = {"weights": {"model.safetensors": "1f"}, "threads": 1}


def sample(number: int, max_new_tokens: int = 8) -> dict:
    return {"prompt": f"prompt {number}", "max_new_tokens": max_new_tokens, "sample": number}


def entry(number: int) -> dict:
    text = f"a\nb\u2028ö {number}"
    return {"answer": {"prediction": text}, "measured": {"seconds": number / 3}, "layers": []}


def filled(folder: Path, count: int = 3) -> AnswerStore:
    store = AnswerStore(folder, FACTS, {"system": "dense"})
    for number in range(count):
        store.add(sample(number), entry(number))
    return store


def test_an_answer_is_found_by_its_prompt_and_by_what_it_depends_on(tmp_path: Path):
    written = filled(tmp_path)
    again = AnswerStore(tmp_path, dict(reversed(FACTS.items())), {"system": "renamed"})
    assert again.get({**sample(1), "sample": 7}) == entry(1)
    assert again.get(sample(3)) is None
    assert again.get(sample(1, max_new_tokens=9)) is None
    assert AnswerStore(tmp_path, {**FACTS, "threads": 2}).get(sample(1)) is None
    assert json.loads((written.folder / "system.json").read_text()) == {
        "label": {"system": "dense"},
        "facts": FACTS,
    }


def test_a_store_without_a_folder_keeps_answers_in_memory():
    store = filled(None)
    assert store.get(sample(2)) == entry(2)
    assert store.folder is None


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_a_kill_cut_is_answered_again(tmp_path: Path, cut: int):
    (segment,) = filled(tmp_path).folder.glob("*.jsonl")
    content = segment.read_bytes()
    segment.write_bytes(content[:-cut])
    store = AnswerStore(tmp_path, FACTS)
    assert [store.get(sample(i)) for i in range(3)] == [entry(0), entry(1), None]
    # Another job may still write that file, so it is left alone.
    store.add(sample(2), entry(2))
    assert segment.read_bytes() == content[:-cut]
    assert AnswerStore(tmp_path, FACTS).get(sample(2)) == entry(2)


def test_each_flipped_byte_costs_one_answer_and_changes_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (segment,) = filled(tmp_path).folder.glob("*.jsonl")
    content = segment.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        segment.write_bytes(flipped)
        store = AnswerStore(tmp_path, FACTS)
        found = [store.get(sample(i)) for i in range(3)]
        # A damaged end of line joins two lines.
        lost = sum(entry is None for entry in found)
        assert 1 <= lost <= 1 + (content[place : place + 1] == b"\n")
        assert all(one in (None, entry(i)) for i, one in enumerate(found))
    assert f"{segment}: 1 damaged answers" in caplog.text


_ADD = """
import sys
from needlework.evaluation.answer_store import AnswerStore
store = AnswerStore(sys.argv[1], {"weights": {"model.safetensors": "1f"}, "threads": 1})
first = int(sys.argv[2])
for number in range(first, first + 200):
    row = {"prompt": f"prompt {number}", "max_new_tokens": 8}
    store.add(row, {"answer": {"prediction": str(number)}, "measured": {}, "layers": []})
"""


def test_jobs_that_write_at_once_lose_nothing(tmp_path: Path):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, str(tmp_path), str(first)], env={"PYTHONPATH": PYTHONPATH}
        )
        for first in (0, 100, 200)
    ]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    store = AnswerStore(tmp_path, FACTS)
    found = [store.get(sample(number)) for number in range(400)]
    assert [one and one["answer"]["prediction"] for one in found] == [str(i) for i in range(400)]
