"""Many requests to a real server that fails at times: no answer is lost or requested twice."""

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

from needlework.config.models.api import Api, Price
from needlework.evaluation.api import answers
from needlework.evaluation.api.answers import price_dollars, request_answers

pytestmark = pytest.mark.slow

EXPECTED_REASONS = re.compile(
    r"(429: Slow down|500: The server is <b>out</b> of order|no complete answer within \d+ s"
    r"|the stream ended before the answer was complete|the API gave an empty answer"
    r"|invalid response: .+"
    r"|.*(ReadError|RemoteProtocolError|peer closed|disconnected|reset).*) \(2 attempts\)"
)


def samples(count: int) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"task": "t", "length": 64, "sample": i, "tokens": 10, "max_new_tokens": 5}
            | {"context": f"{i} is the number. ", "question": "What is the number?"}
            | {"answer_prefix": " It is", "prompt": f"{i} is the number. What is the number? It is"}
            for i in range(count)
        ]
    )


def sample_of(body: dict) -> str:
    """Number of the sample that a request contains."""
    return body["messages"][-1]["content"].split()[0]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "FIRST_WAIT_SECONDS", 0.01)


def run(server: ApiServer, count: int, journal: Path, key: str | None = None, **settings):
    api = Api(api=server.url, model="m", **{"timeout_seconds": 5, "retries": 3, **settings})
    return request_answers(api, samples(count), system="s", key=key, journal=journal)


def test_hundreds_of_requests_to_a_faulty_server(tmp_path: Path):
    draw = random.Random(3)
    transient = [fault for fault in FAULTS if fault != "stall"]

    def fault(number: int, body: dict) -> str | None:
        if number % 150 == 7:
            return "stall"
        return draw.choice(transient) if draw.random() < 0.35 else None

    faulty = ApiServer(sample_of, fault)
    journal = tmp_path / "journal.jsonl"
    with serving(faulty):
        predictions, measurements = run(
            faulty,
            400,
            journal,
            concurrency=16,
            timeout_seconds=6,
            retries=1,
            price=Price(prompt=1, completion=2),
        )
        requests, answered_requests = list(faulty.requests), list(faulty.answered_requests)
        faulty.requests.clear()
        faulty.fault = lambda n, body: None
        second_run, _ = run(faulty, 400, journal, concurrency=8)

    assert predictions["sample"].to_list() == list(range(400))
    answered = predictions.filter(pl.col("status") == "ok")
    assert answered["prediction"].to_list() == answered["sample"].cast(pl.String).to_list()
    failed = predictions.filter(pl.col("status") == "error")
    assert len(answered) + len(failed) == 400
    assert len(failed) > 20
    for reason in failed["reason"]:
        assert EXPECTED_REASONS.fullmatch(reason), reason
    assert len({reason.split(" ")[0] for reason in failed["reason"]}) >= 5

    # Every request is accounted for, and an answered sample is not requested again.
    assert Counter(map(sample_of, answered_requests)) == Counter(answered["prediction"])
    requests_of = Counter(map(sample_of, requests))
    for i, attempts in enumerate(measurements["attempts"]):
        assert requests_of[str(i)] <= attempts <= 2
    assert (measurements["price_dollars"] > 0).sum() == len(answered)
    assert measurements["price_dollars"].null_count() == len(failed)

    # The next run requests failed samples only.
    assert second_run["prediction"].to_list() == [str(i) for i in range(400)]
    assert sorted(map(sample_of, faulty.requests), key=int) == failed["sample"].cast(str).to_list()
    lines = [json.loads(line)["sample"] for line in journal.read_text().splitlines()]
    assert sorted(lines) == list(range(400))


def test_rows_hold_measurements_and_price(tmp_path: Path):
    server = ApiServer(sample_of)
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


def test_an_unknown_price_is_null():
    price = Price(prompt=2, completion=4)
    assert price_dollars(price, 100, 10, 50) == pytest.approx((100 * 2 + 10 * 4) / 1e6)
    assert price_dollars(price, None, 10, 0) is None
    assert price_dollars(None, 100, 10, 0) is None


def test_a_refused_prompt_is_recorded_and_not_requested_again(tmp_path: Path):
    long = (400, {"error": {"message": "maximum context length is 8", "code": "x"}})
    server = ApiServer(sample_of, lambda n, body: long if sample_of(body) == "1" else None)
    with serving(server):
        predictions, _ = run(server, 3, tmp_path / "j")
        again, _ = run(server, 3, tmp_path / "j")
    assert predictions["status"].to_list() == ["ok", "refused", "ok"]
    assert predictions["reason"].to_list() == [None, "400: maximum context length is 8", None]
    assert predictions["prediction"].to_list() == ["0", "", "2"]
    assert again.equals(predictions)
    assert len(server.requests) == 3


def test_requests_run_concurrently_up_to_the_limit(tmp_path: Path):
    server = ApiServer(sample_of, seconds=0.2)
    with serving(server):
        run(server, 12, tmp_path / "j", concurrency=4)
    assert server.max_concurrent == 4


def test_retry_after_pauses_all_requests(tmp_path: Path):
    """Including those of a worker that got an answer in the meantime."""
    seconds = iter([1.0, 0, 0, 0])

    def slow_at_first(body: dict) -> str:
        time.sleep(next(seconds))
        return sample_of(body)

    server = ApiServer(slow_at_first, lambda n, body: "429" if n == 1 else None, retry_after="2")
    with serving(server):
        predictions, measurements = run(server, 4, tmp_path / "j", concurrency=2)
    assert set(predictions["status"]) == {"ok"}
    assert sorted(measurements["attempts"]) == [1, 1, 1, 2]
    assert min(server.times[2:]) - server.times[0] >= 2


def test_a_retry_after_of_a_day_stops_the_run(tmp_path: Path):
    server = ApiServer(sample_of, lambda n, body: "429" if n > 2 else None, retry_after="86400")
    with serving(server), pytest.raises(ValueError, match=r"asks to wait 86,400 s .*run again"):
        run(server, 9, tmp_path / "j", concurrency=1)
    assert len(server.requests) == 3
    assert len((tmp_path / "j").read_text().splitlines()) == 2


def test_rate_limits_hold_at_the_server(tmp_path: Path):
    server, began = ApiServer(sample_of), time.monotonic()
    with serving(server):
        run(server, 6, tmp_path / "j", requests_per_minute=300, concurrency=6)
    # Measured from before the first request, whose latency varies.
    assert server.times[-1] - began >= 1.0


@pytest.mark.parametrize(
    ("status", "line"),
    [(401, "rejects a request without a key"), (404, "has no model m or no endpoint chat")],
)
def test_an_error_of_every_sample_stops_the_run(tmp_path: Path, status: int, line: str):
    """Answers received before it are kept."""
    wrong = (status, {"error": {"message": "No"}})
    server = ApiServer(sample_of, lambda n, body: wrong if n > 4 else None)
    with serving(server):
        with pytest.raises(ValueError, match=re.escape(line)) as caught:
            run(server, 100, tmp_path / "j", concurrency=2)
        assert "\n" not in str(caught.value)
        assert len(server.requests) <= 4 + 2
        before, server.fault = len(server.requests), lambda n, body: None
        run(server, 100, tmp_path / "j")
    assert len(server.requests) - before == 100 - 4


def test_one_prompt_may_be_forbidden(tmp_path: Path):
    wrong = (403, {"error": {"message": "Flagged"}})
    server = ApiServer(sample_of, lambda n, body: wrong if sample_of(body) == "1" else None)
    with serving(server):
        predictions, _ = run(server, 3, tmp_path / "j", concurrency=1)
    assert predictions["status"].to_list() == ["ok", "refused", "ok"]
    server = ApiServer(sample_of, lambda n, body: wrong)
    with (
        serving(server),
        pytest.raises(ValueError, match=r"does not allow this key to use m \(403"),
    ):
        run(server, 3, tmp_path / "k", concurrency=1)


def test_an_unwritable_journal_is_a_one_line_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    server = ApiServer(sample_of)
    with serving(server), pytest.raises(ValueError, match=r"file/j: .*(Not a dir|File exists)"):
        run(server, 9, tmp_path / "file" / "j", concurrency=2)
    assert len(server.requests) <= 4


def test_a_missing_server_stops_the_run(tmp_path: Path):
    server = ApiServer(sample_of)
    server._http.server_close()
    with pytest.raises(ValueError, match=r"cannot be reached: .*4 attempts\); is it running\?$"):
        run(server, 5, tmp_path / "j")


def test_a_server_that_goes_away_fails_sample_by_sample(tmp_path: Path):
    server = ApiServer(sample_of)
    server.fault = lambda n, body: "reset" if n > 2 else None
    with serving(server):
        predictions, _ = run(server, 5, tmp_path / "j", concurrency=1, retries=1)
    assert predictions["status"].to_list() == ["ok", "ok", "error", "error", "error"]


def test_test_mode_sends_a_short_prompt_first(tmp_path: Path):
    server = ApiServer(lambda body: "fine")
    with serving(server):
        for _ in range(2):
            predictions, _ = run(server, 2, tmp_path / "j", test_mode=True)
    short, *rest = (body["messages"][-1]["content"] for body in server.requests)
    assert short == "What is the number? It is"
    assert [text.split()[0] for text in rest] == ["0", "1"]
    assert len(predictions) == 2

    server = ApiServer(sample_of, lambda n, body: (400, {"error": {"message": "n must be 1"}}))
    with (
        serving(server),
        pytest.raises(ValueError, match=r"a short test prompt: 400: n must be 1$"),
    ):
        run(server, 50, tmp_path / "k", test_mode=True)
    assert len(server.requests) == 1


def test_truncated_prompts_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    server = ApiServer(sample_of)
    long = samples(2).with_columns(tokens=pl.lit(100_000))
    with serving(server):
        api = Api(api=server.url, model="m", tokenizer="base")
        cut, _ = request_answers(api, long, system="s", key=None, journal=tmp_path / "j")
        assert "2 truncated" in caplog.text
        assert "where the sample has 100,000; does it truncate prompts?" in caplog.text
        caplog.clear()
        request_answers(api, samples(2), system="s", key=None, journal=tmp_path / "j")
    assert "does it truncate" not in caplog.text
    assert cut["status"].to_list() == ["truncated"] * 2
    assert cut["prediction"].to_list() == ["0", "1"]


def test_half_a_prompt_is_truncated(tmp_path: Path):
    server = ApiServer(sample_of, prompt_tokens=lambda body: 4096)
    long = samples(1).with_columns(tokens=pl.lit(8182))
    with serving(server):
        api = Api(api=server.url, model="m", tokenizer="base")
        predictions, _ = request_answers(api, long, system="s", key=None, journal=tmp_path / "j")
    reason = "the API counts 4,096 tokens where the sample has 8,182; does it truncate prompts?"
    assert predictions.select("status", "reason").row(0) == ("truncated", reason)


_REQUEST_ANSWERS = """
import sys
from pathlib import Path
from evaluation.api.test_answers import Api, request_answers, samples
api = Api(api=sys.argv[1], model="m", concurrency=4)
request_answers(api, samples(60), system="s", key=None, journal=Path(sys.argv[2]))
"""


def test_answers_before_kill_9_are_not_requested_again(tmp_path: Path):
    server = ApiServer(sample_of, seconds=0.05)
    journal = tmp_path / "j"
    finished: list[tuple[int, set[int]]] = []
    with serving(server):
        for answers_before_kill in (15, 35):
            process = subprocess.Popen(
                [sys.executable, "-c", _REQUEST_ANSWERS, server.url, str(journal)],
                env={**os.environ, "PYTHONPATH": PYTHONPATH},
            )
            while len(server.answered_requests) < answers_before_kill and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            lines = journal.read_bytes().splitlines()
            finished.append((len(server.requests), {json.loads(line)["sample"] for line in lines}))
        predictions, _ = run(server, 60, journal, concurrency=4)
    assert 5 < len(finished[0][1]) < len(finished[1][1]) < 60
    for before, done in finished:
        assert done.isdisjoint(int(sample_of(body)) for body in server.requests[before:])
    # Each kill loses at most the requests in flight.
    assert len(server.requests) - 60 <= 2 * 4
    assert predictions["prediction"].to_list() == [str(i) for i in range(60)]
