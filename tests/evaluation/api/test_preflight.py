"""Whether an API without a key has to be asked: what is due, and what its journal has."""

from pathlib import Path

import polars as pl
import pytest
from support.api_server import ApiServer, serving

from needlework.config.experiment import Experiment
from needlework.config.parsing.load import load_experiment
from needlework.evaluation.answer_journal import journal_of
from needlework.evaluation.api.answers import ask
from needlework.evaluation.api.preflight import require_keys, without_key

ROWS = [
    {"task": "t", "length": 64, "sample": i, "tokens": 10, "max_new_tokens": 5, "context": f"{i}. "}
    | {"question": "What?", "answer_prefix": "", "prompt": f"{i}. What?"}
    for i in range(3)
]


def experiment(url: str, **api) -> Experiment:
    remote = {"api": url, "model": "m", "key_env": "THE_KEY", "tokenizer": "base", **api}
    return load_experiment(
        {
            "experiment": "small",
            "models": {"base": {"path": "resources/needlework-tiny"}, "remote": remote},
            "systems": {"here": {"model": "base"}, "there": {"model": "remote"}},
            "tasks": {"t": {"type": "passkey"}, "u": {"type": "passkey"}},
            "lengths": [64],
        }
    )


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment without its key, and the one cell of it that has samples and answers."""
    monkeypatch.delenv("THE_KEY", raising=False)
    table = tmp_path / "predictions/there/t/64.parquet"
    samples = tmp_path / "samples/base/t/64.parquet"
    samples.parent.mkdir(parents=True)
    pl.DataFrame(ROWS).write_parquet(samples)
    server = ApiServer(lambda body: "yes")
    with serving(server):
        made = experiment(server.url)
        journal = journal_of(table)
        api = made.models["remote"]
        ask(api, pl.DataFrame(ROWS), system="there", key="a-key-of-ours", journal=journal)
    return made, table, samples


def asks(made: Experiment, results: Path, *due: Path) -> bool:
    missing = without_key(made)
    try:
        require_keys(made, results, missing, due)
    except ValueError as error:
        return str(error) == missing["remote"]
    return False


def test_a_cell_whose_answers_are_there_asks_nothing(answered, tmp_path: Path):
    made, table, samples = answered
    other = tmp_path / "predictions/there/u/64.parquet"
    assert not asks(made, tmp_path)
    assert not asks(made, tmp_path, table)
    assert not asks(made, tmp_path, table, tmp_path / "scores/there/t/64.parquet")
    assert asks(made, tmp_path, table, samples)
    assert asks(made, tmp_path, table, other, tmp_path / "samples/base/u/64.parquet")


def test_one_answer_that_is_not_there_is_asked_for(answered, tmp_path: Path):
    made, table, _ = answered
    warmer = experiment(made.models["remote"].api, temperature=1.0)
    dearer = experiment(made.models["remote"].api, price={"prompt": 1, "completion": 2})
    assert asks(warmer, tmp_path, table)
    assert not asks(dearer, tmp_path, table)
    journal = journal_of(table)
    lines = journal.read_bytes().splitlines(keepends=True)
    # Cut within its last line: another process may be writing it, so it stays as it is.
    cut = b"".join(lines)[:-9]
    journal.write_bytes(cut)
    assert asks(made, tmp_path, table)
    assert journal.read_bytes() == cut


def test_a_trial_is_not_asked_for_where_all_is_answered(answered):
    made, table, _ = answered
    # Its server is gone.
    api = made.models["remote"].model_copy(update={"test_mode": True, "retries": 0})
    journal = journal_of(table)
    found, _ = ask(api, pl.DataFrame(ROWS), system="there", key=None, journal=journal)
    assert found["prediction"].to_list() == ["yes"] * 3


def test_a_key_that_is_there_is_not_missed(answered, monkeypatch: pytest.MonkeyPatch):
    made, *_ = answered
    (told,) = without_key(made).values()
    assert told.startswith("models.remote.key_env THE_KEY: is not set in the environment")
    monkeypatch.setenv("THE_KEY", "sk-1")
    assert without_key(made) == {}


def test_samples_that_are_cut_short_are_one_line(answered, tmp_path: Path):
    made, table, samples = answered
    samples.write_bytes(samples.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=r"64\.parquet: no whole table \(.*\); delete it and run a"
    ):
        require_keys(made, tmp_path, without_key(made), [table])
