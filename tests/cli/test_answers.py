"""The lines of `needlework answers`."""

from pathlib import Path

from needlework.cli.answers import describe
from needlework.evaluation.answer_store import AnswerStore


def test_systems_and_their_sum_are_listed_and_deleted(tmp_path: Path):
    label = {"system": "random", "model": "models/tiny", "experiment": "quick"}
    store = AnswerStore(tmp_path, {"device": "cpu"}, label)
    for number in range(5):
        row = {"prompt": str(number), "max_new_tokens": 4}
        store.add(row, {"answer": {}, "measured": {}, "layers": []})
    line, total = describe(tmp_path, None)
    assert line.startswith("random: 5 answers (0.0 MB), models/tiny on cpu, last used 20")
    assert line.endswith(f"[{store.folder}]")
    assert total == "stored: answers 5, systems 1, 0.0 MB"
    assert list(describe(tmp_path, 0))[-1] == "deleted: answers 5, systems 1, 0.0 MB"
    assert list(describe(tmp_path, None)) == ["stored: answers 0, systems 0, 0.0 MB"]
