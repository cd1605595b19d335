"""Many requests to a real server, right and wrong: nothing lost, nothing double, all explained."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from support.api_server import FAULTS, ApiServer, serving
from support.paths import PYTHONPATH

from needlework.config.models import Api, Price
from needlework.evaluation.answer_journal import AnswerJournal, alone
from needlework.evaluation.api import answers as asking
from needlework.evaluation.api.answers import ask, price_dollars
from needlework.evaluation.api.rate_limit import RateLimiter

EXPLAINED = re.compile(
    r"(429: Slow down|500: The server is <b>out</b> of order|no whole answer within \d+ s"
    r"|the stream ended before the answer did|the API gave an empty answer"
    r"|no sense in the response: .+"
    r"|.*(ReadError|RemoteProtocolError|peer closed|disconnected|reset).*) \(tried 2 times\)"
)


def samples(count: int) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"task": "t", "length": 64, "sample": i, "tokens": 10, "max_new_tokens": 5}
            | {"context": f"{i} stands here. ", "question": "What stands here?"}
            | {"answer_prefix": " It is", "prompt": f"{i} stands here. What stands here? It is"}
            for i in range(count)
        ]
    )


def asked_of(body: dict) -> str:
    return body["messages"][-1]["content"].split()[0]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.01)


def run(server: ApiServer, count: int, journal: Path, key: str | None = None, **settings):
    api = Api(api=server.url, model="m", **{"timeout_seconds": 5, "retries": 3, **settings})
    return ask(api, samples(count), system="s", key=key, journal=journal)


def test_a_thousand_requests_of_a_faulty_server(tmp_path: Path):
    draw = random.Random(3)
    passing = [fault for fault in FAULTS if fault != "stall"]

    def fault(number: int, body: dict) -> str | None:
        if number % 150 == 7:
            return "stall"
        return draw.choice(passing) if draw.random() < 0.35 else None

    faulty = ApiServer(asked_of, fault)
    journal = tmp_path / "journal.jsonl"
    with serving(faulty):
        predictions, measurements = run(
            faulty,
            1000,
            journal,
            concurrency=16,
            timeout_seconds=6,
            retries=1,
            price=Price(prompt=1, completion=2),
        )
        asked, answers = list(faulty.asked), list(faulty.answered)
        faulty.asked.clear()
        faulty.fault = lambda n, body: None
        healed, _ = run(faulty, 1000, journal, concurrency=8)

    assert predictions["sample"].to_list() == list(range(1000))
    answered = predictions.filter(pl.col("status") == "ok")
    assert answered["prediction"].to_list() == answered["sample"].cast(pl.String).to_list()
    failed = predictions.filter(pl.col("status") == "error")
    assert len(answered) + len(failed) == 1000
    assert len(failed) > 50
    for reason in failed["reason"]:
        assert EXPLAINED.fullmatch(reason), reason
    assert len({reason.split(" ")[0] for reason in failed["reason"]}) >= 5

    # Every request is accounted for, and none was made behind an answer.
    assert Counter(map(asked_of, answers)) == Counter(answered["prediction"])
    times = Counter(map(asked_of, asked))
    for i, attempts in enumerate(measurements["attempts"]):
        assert times[str(i)] <= attempts <= 2
    assert (measurements["price_dollars"] > 0).sum() == len(answered)
    assert measurements["price_dollars"].null_count() == len(failed)

    # What failed is asked again by the next run, and nothing else.
    assert healed["prediction"].to_list() == [str(i) for i in range(1000)]
    assert sorted(map(asked_of, faulty.asked), key=int) == failed["sample"].cast(str).to_list()
    lines = [json.loads(line)["sample"] for line in journal.read_text().splitlines()]
    assert sorted(lines) == list(range(1000))


def test_a_row_says_what_was_measured_and_what_it_costs(tmp_path: Path):
    server = ApiServer(asked_of)
    with serving(server):
        price = Price(prompt=1, completion=10, cached=0.5)
        predictions, measurements = run(server, 3, tmp_path / "j", price=price)
    assert predictions["new_tokens"].to_list() == [3] * 3
    assert predictions["prefill_density"].null_count() == 3
    (row, *_) = measurements.rows(named=True)
    assert row["prefill_seconds"] > 0
    assert row["decode_seconds"] >= 0
    assert row["cached_tokens"] == 2
    expected = (row["prompt_tokens"] - 2) * 1 + 2 * 0.5 + 3 * 10
    assert row["price_dollars"] == pytest.approx(expected / 1e6)


def test_a_price_that_is_not_known_is_null():
    price = Price(prompt=2, completion=4)
    assert price_dollars(price, 100, 10, 50) == pytest.approx((100 * 2 + 10 * 4) / 1e6)
    assert price_dollars(price, None, 10, 0) is None
    assert price_dollars(None, 100, 10, 0) is None


def test_a_refused_prompt_is_told_and_not_asked_again(tmp_path: Path):
    long = (400, {"error": {"message": "maximum context length is 8", "code": "x"}})
    server = ApiServer(asked_of, lambda n, body: long if asked_of(body) == "1" else None)
    with serving(server):
        predictions, _ = run(server, 3, tmp_path / "j")
        again, _ = run(server, 3, tmp_path / "j")
    assert predictions["status"].to_list() == ["ok", "refused", "ok"]
    assert predictions["reason"].to_list() == [None, "400: maximum context length is 8", None]
    assert predictions["prediction"].to_list() == ["0", "", "2"]
    assert again.equals(predictions)
    assert len(server.asked) == 3


def test_requests_run_beside_each_other_up_to_the_limit(tmp_path: Path):
    server = ApiServer(asked_of, seconds=0.2)
    with serving(server):
        run(server, 12, tmp_path / "j", concurrency=4)
    assert server.most_at_once == 4


def test_retry_after_holds_for_all(tmp_path: Path):
    """Also for who was answered in the meantime."""
    seconds = iter([1.0, 0, 0, 0])

    def slow_at_first(body: dict) -> str:
        time.sleep(next(seconds))
        return asked_of(body)

    server = ApiServer(slow_at_first, lambda n, body: "429" if n == 1 else None, retry_after="2")
    with serving(server):
        predictions, measurements = run(server, 4, tmp_path / "j", concurrency=2)
    assert set(predictions["status"]) == {"ok"}
    assert sorted(measurements["attempts"]) == [1, 1, 1, 2]
    assert min(server.times[2:]) - server.times[0] >= 2


def test_a_day_of_waiting_stops_the_run(tmp_path: Path):
    server = ApiServer(asked_of, lambda n, body: "429" if n > 2 else None, retry_after="86400")
    with serving(server), pytest.raises(ValueError, match=r"asks to wait 86,400 s .*run again"):
        run(server, 9, tmp_path / "j", concurrency=1)
    assert len(server.asked) == 3
    assert len((tmp_path / "j").read_text().splitlines()) == 2


def test_pace_spreads_requests_and_tokens():
    pace = RateLimiter(requests_per_minute=1, tokens_per_minute=None)
    assert pace.wait_seconds <= 0
    pace.start(tokens=10**9)
    assert 50 < pace.wait_seconds <= 60
    pace = RateLimiter(requests_per_minute=None, tokens_per_minute=1000)
    pace.start(tokens=500)
    assert 20 < pace.wait_seconds <= 30
    pace.pause(3000)
    assert 2900 < pace.wait_seconds <= 3000
    pace.pause(1)
    assert pace.wait_seconds > 2900


def test_limits_are_kept_at_the_server(tmp_path: Path):
    server, began = ApiServer(asked_of), time.monotonic()
    with serving(server):
        run(server, 6, tmp_path / "j", requests_per_minute=300, concurrency=6)
    # From before the first starts: how long its way takes is nobody's promise.
    assert server.times[-1] - began >= 1.0


@pytest.mark.parametrize(
    ("status", "line"),
    [(401, "refuses a request without key"), (404, "has no model m, or no endpoint chat")],
)
def test_what_is_wrong_for_all_stops_at_once(tmp_path: Path, status: int, line: str):
    """What is answered by then is kept."""
    wrong = (status, {"error": {"message": "No"}})
    server = ApiServer(asked_of, lambda n, body: wrong if n > 4 else None)
    with serving(server):
        with pytest.raises(ValueError, match=re.escape(line)) as caught:
            run(server, 100, tmp_path / "j", concurrency=2)
        assert "\n" not in str(caught.value)
        assert len(server.asked) <= 4 + 2
        before, server.fault = len(server.asked), lambda n, body: None
        run(server, 100, tmp_path / "j")
    assert len(server.asked) - before == 100 - 4


def test_a_prompt_may_be_forbidden_where_others_are_not(tmp_path: Path):
    wrong = (403, {"error": {"message": "Flagged"}})
    server = ApiServer(asked_of, lambda n, body: wrong if asked_of(body) == "1" else None)
    with serving(server):
        predictions, _ = run(server, 3, tmp_path / "j", concurrency=1)
    assert predictions["status"].to_list() == ["ok", "refused", "ok"]
    server = ApiServer(asked_of, lambda n, body: wrong)
    with serving(server), pytest.raises(ValueError, match=r"does not let this key ask m \(403: Fl"):
        run(server, 3, tmp_path / "k", concurrency=1)


def test_a_disk_that_is_full_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    server = ApiServer(asked_of)
    with serving(server), pytest.raises(ValueError, match=r"file/j: .*(Not a dir|File exists)"):
        run(server, 9, tmp_path / "file" / "j", concurrency=2)
    assert len(server.asked) <= 4


def test_no_server_stops(tmp_path: Path):
    server = ApiServer(asked_of)
    server._http.server_close()
    with pytest.raises(ValueError, match=r"cannot be reached: .*tried 4 times\); is it running\?$"):
        run(server, 5, tmp_path / "j")


def test_a_server_that_goes_away_is_told_sample_by_sample(tmp_path: Path):
    server = ApiServer(asked_of)
    server.fault = lambda n, body: "reset" if n > 2 else None
    with serving(server):
        predictions, _ = run(server, 5, tmp_path / "j", concurrency=1, retries=1)
    assert predictions["status"].to_list() == ["ok", "ok", "error", "error", "error"]


def test_mode_test_sends_something_small_first(tmp_path: Path):
    server = ApiServer(lambda body: "fine")
    with serving(server):
        for _ in range(2):
            predictions, _ = run(server, 2, tmp_path / "j", test_mode=True)
    small, *rest = (body["messages"][-1]["content"] for body in server.asked)
    assert small == "What stands here? It is"
    assert [text.split()[0] for text in rest] == ["0", "1"]
    assert len(predictions) == 2

    server = ApiServer(asked_of, lambda n, body: (400, {"error": {"message": "n must be 1"}}))
    with serving(server), pytest.raises(ValueError, match=r"a small sample: 400: n must be 1$"):
        run(server, 50, tmp_path / "k", test_mode=True)
    assert len(server.asked) == 1


def test_a_prompt_that_the_server_cuts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    server = ApiServer(asked_of)
    wide = samples(2).with_columns(tokens=pl.lit(100_000))
    with serving(server):
        api = Api(api=server.url, model="m", tokenizer="base")
        ask(api, wide, system="s", key=None, journal=tmp_path / "j")
        assert "where the sample has 100000 (2 such); does it cut what it reads?" in caplog.text
        caplog.clear()
        ask(api, samples(2), system="s", key=None, journal=tmp_path / "j")
    assert "does it cut" not in caplog.text


def test_a_journal_forgets_a_line_that_was_cut_short(tmp_path: Path):
    journal = AnswerJournal(tmp_path / "j")
    assert journal.load() == {}
    entries = [{"key": str(i), "answer": {"text": "a\nb\u2028ö"}} for i in range(3)]
    for entry in entries:
        journal.add(entry)
    whole = journal.path.read_bytes()
    for cut in (1, 20):
        journal.path.write_bytes(whole[:-cut])
        assert list(journal.load().values()) == entries[:2]
        journal.add(entries[2])
        assert journal.path.read_bytes() == whole
    journal.path.write_bytes(b"no JSON\n" + whole)
    with pytest.raises(ValueError, match=r"j:1: no entry of a journal; delete the line"):
        journal.load()


_ALONE = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from needlework.evaluation.answer_journal import alone
with alone(sys.argv[1]):
    print("alone")
"""


def test_jobs_that_ask_one_api_wait_for_each_other(tmp_path: Path):
    lock = tmp_path / "lock"
    command = [sys.executable, "-u", "-c", _ALONE, str(lock)]
    with alone(lock):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline().endswith("another job asks this API; waiting for it\n")
    assert other.communicate()[0] == "alone\n"


_ASK = """
import sys
from pathlib import Path
from evaluation.api.test_answers import Api, ask, samples
api = Api(api=sys.argv[1], model="m", concurrency=4)
ask(api, samples(60), system="s", key=None, journal=Path(sys.argv[2]))
"""


def test_what_was_answered_before_kill_9_is_not_asked_again(tmp_path: Path):
    server = ApiServer(asked_of, seconds=0.05)
    journal = tmp_path / "j"
    finished: list[tuple[int, set[int]]] = []
    with serving(server):
        for wanted in (15, 35):
            process = subprocess.Popen(
                [sys.executable, "-c", _ASK, server.url, str(journal)],
                env={**os.environ, "PYTHONPATH": PYTHONPATH},
            )
            while len(server.answered) < wanted and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            lines = journal.read_bytes().splitlines()
            finished.append((len(server.asked), {json.loads(line)["sample"] for line in lines}))
        predictions, _ = run(server, 60, journal, concurrency=4)
    assert 5 < len(finished[0][1]) < len(finished[1][1]) < 60
    for before, samples_done in finished:
        assert samples_done.isdisjoint(int(asked_of(body)) for body in server.asked[before:])
    # Under way when it was killed: at most as many as may be, each time.
    assert len(server.asked) - 60 <= 2 * 4
    assert predictions["prediction"].to_list() == [str(i) for i in range(60)]
