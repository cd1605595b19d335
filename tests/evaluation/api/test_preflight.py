"""Whether a run needs an API whose key is missing, by what is due and what the journal holds."""

from pathlib import Path

import polars as pl
import pytest
from support.api_server import ApiServer, serving

from needlework.config.experiment import Experiment
from needlework.config.parsing.load import load_experiment
from needlework.evaluation.answer_journal import journal_path
from needlework.evaluation.api.answers import request_answers
from needlework.evaluation.api.preflight import missing_keys, require_keys

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
            "tasks": {"t": {"type": "passkey"}},
            "lengths": [64],
        }
    )


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment without its key, and its one cell that has samples and answers."""
    monkeypatch.delenv("THE_KEY", raising=False)
    table = tmp_path / "predictions/there.parquet"
    samples = tmp_path / "samples/base/t/64.parquet"
    samples.parent.mkdir(parents=True)
    pl.DataFrame(ROWS).write_parquet(samples)
    server = ApiServer(lambda body: "yes")
    with serving(server):
        made = experiment(server.url)
        journal = journal_path(table)
        api = made.models["remote"]
        request_answers(
            api, pl.DataFrame(ROWS), system="there", key="a-key-of-ours", journal=journal
        )
    return made, table, samples


def needs_key(made: Experiment, results: Path, *due: Path) -> bool:
    missing = missing_keys(made)
    try:
        require_keys(made, results, missing, due)
    except ValueError as error:
        return str(error) == missing["remote"]
    return False


def test_a_cell_with_all_answers_needs_no_key(answered, tmp_path: Path):
    made, table, samples = answered
    here = tmp_path / "predictions/here.parquet"
    assert not needs_key(made, tmp_path)
    assert not needs_key(made, tmp_path, table)
    assert not needs_key(made, tmp_path, table, tmp_path / "scores/there.parquet", here)
    assert needs_key(made, tmp_path, table, samples)


def test_a_missing_answer_needs_the_key(answered, tmp_path: Path):
    made, table, _ = answered
    other_request = experiment(made.models["remote"].api, temperature=1.0)
    other_price = experiment(made.models["remote"].api, price={"prompt": 1, "completion": 2})
    assert needs_key(other_request, tmp_path, table)
    assert not needs_key(other_price, tmp_path, table)
    journal = journal_path(table)
    lines = journal.read_bytes().splitlines(keepends=True)
    # A last line cut short is left alone: another process may be writing it.
    cut = b"".join(lines)[:-9]
    journal.write_bytes(cut)
    assert needs_key(made, tmp_path, table)
    assert journal.read_bytes() == cut


def test_no_test_prompt_is_sent_if_all_samples_have_answers(answered):
    made, table, _ = answered
    # The server is down.
    api = made.models["remote"].model_copy(update={"test_mode": True, "retries": 0})
    journal = journal_path(table)
    predictions, _ = request_answers(
        api, pl.DataFrame(ROWS), system="there", key=None, journal=journal
    )
    assert predictions["prediction"].to_list() == ["yes"] * 3


def test_a_key_in_the_environment_is_found(answered, monkeypatch: pytest.MonkeyPatch):
    made, *_ = answered
    (message,) = missing_keys(made).values()
    assert message.startswith("models.remote.key_env THE_KEY: is not set in the environment")
    monkeypatch.setenv("THE_KEY", "sk-1")
    assert missing_keys(made) == {}


def test_truncated_samples_are_a_one_line_error(answered, tmp_path: Path):
    made, table, samples = answered
    samples.write_bytes(samples.read_bytes()[:200])
    with pytest.raises(
        ValueError, match=r"64\.parquet: is not a complete table \(.*\); delete it and run a"
    ):
        require_keys(made, tmp_path, missing_keys(made), [table])
