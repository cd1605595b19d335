"""One request to a real server: what is sent, what is read, how errors are classified."""

import asyncio
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.api_server import FAULTS, ApiServer, serving

from needlework.config.models.api import Api
from needlework.models.api import client as api_module
from needlework.models.api.client import (
    Answer,
    Endpoint,
    FatalError,
    RequestFailed,
    RequestRefused,
    RetryableError,
)
from needlework.models.api.overflow import is_too_long

pytestmark = pytest.mark.slow

ROW = {
    "context": "Long ago.\n",
    "question": "When was it?",
    "answer_prefix": " It was",
    "prompt": "<s>Long ago.\nWhen was it? It was",
    "max_new_tokens": 7,
}
KEY = "sk-very-secret"


def complete(server: ApiServer, key: str | None = None, row: dict = ROW, **settings) -> Answer:
    api = Api(api=server.url, model="m", **{"timeout_seconds": 5, **settings})

    async def once() -> Answer:
        async with Endpoint(api, key) as endpoint:
            return await endpoint.complete(endpoint.request_body(row))

    with serving(server):
        return asyncio.run(once())


def server_with_answer(text: str, **settings) -> ApiServer:
    return ApiServer(lambda body: text, **settings)


def sent(**settings) -> dict:
    server = server_with_answer("long ago")
    complete(server, **settings)
    (body,) = server.requests
    for key, value in {"stream": True, "stream_options": {"include_usage": True}}.items():
        assert body.pop(key) == value
    return body


def test_a_chat_request_holds_the_whole_context():
    user = {"role": "user", "content": "Long ago.\nWhen was it? It was"}
    usual = {"model": "m", "messages": [user], "temperature": 0.0, "max_tokens": 7}
    assert sent() == usual
    brief = {"role": "system", "content": "Be brief"}
    assert sent(system_prompt="Be brief") == {**usual, "messages": [brief, user]}
    begun = [
        {"role": "user", "content": "Long ago.\nWhen was it?"},
        {"role": "assistant", "content": "It was"},
    ]
    extra = {"continue_final_message": True}
    assert sent(prefill_answer=True, extra_body=extra) == {**usual, "messages": begun, **extra}


def test_a_completion_request_holds_the_prompt():
    expected = {"model": "m", "prompt": ROW["prompt"], "temperature": 0.0, "max_tokens": 7}
    assert sent(endpoint="completions") == expected


def test_unsupported_parameters_can_be_left_out():
    body = sent(temperature=None, max_tokens_key="max_completion_tokens", thinking_tokens=100)
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 107


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_an_answer_is_read_to_the_end(endpoint: str):
    server = server_with_answer("in 1970 or so")
    answer = complete(server, endpoint=endpoint)
    assert (answer.text, answer.stop_reason) == ("in 1970 or so", "eos")
    assert (answer.new_tokens, answer.cached_tokens) == (3, 2)
    assert answer.prompt_tokens == len(
        json.dumps(server.requests[0].get("messages") or ROW["prompt"])
    )
    assert 0 < answer.first_token_seconds <= answer.seconds


STOP = {"finish_reason": "stop"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 3}


def chunk(part: dict | None = None, **more) -> dict:
    return {"choices": [{"index": 0, "delta": part, **more}]}


CHUNKS = {
    "null delta": [chunk({"content": "1970"}), chunk(None, **STOP)],
    "no delta": [chunk({"content": "1970"}), {"choices": [{"index": 0, **STOP}]}],
    "parts": [
        chunk({"content": [{"type": "text", "text": "19"}, {"type": "text", "text": "70"}]}),
        chunk({"content": []}, **STOP),
    ],
    "thoughts": [
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
        chunk({"content": [{"type": "text", "text": "1970"}]}, **STOP),
    ],
    "reasoning": [chunk({"reasoning": "hm"}), chunk({"content": "1970"}, **STOP)],
    "message": [{"choices": [{"message": {"content": "1970"}, **STOP}]}],
    "text": [{"choices": [{"text": "1970", "finish_reason": None}]}, chunk(None, **STOP)],
    "null choices": [{"choices": None}, {"choices": [None]}, chunk({"content": "1970"}, **STOP)],
    "usage ends": [chunk({"content": "1970"}), {"choices": [], "usage": USAGE}],
    "null usage": [chunk({"content": "1970"}, **STOP), {"choices": [], "usage": None}],
    "error after the end": [chunk({"content": "1970"}, **STOP), {"error": {"message": "oh"}}],
}


@pytest.mark.parametrize("events", CHUNKS.values(), ids=CHUNKS)
def test_every_form_of_a_chunk_is_read(events: list[dict]):
    answer = complete(server_with_answer("", events=events))
    assert (answer.text, answer.stop_reason) == ("1970", "eos")


def test_an_answer_in_one_document_is_read():
    document = {"choices": [{"message": {"content": "1970"}, **STOP}], "usage": USAGE}
    answer = complete(ApiServer(lambda body: "", lambda number, body: (200, document)))
    assert (answer.text, answer.prompt_tokens) == ("1970", 9)


def test_reasoning_that_uses_up_all_tokens_is_kept_as_never_closed():
    events = [chunk({"reasoning_content": "1970?"}), chunk(None, finish_reason="length")]
    answer = complete(server_with_answer("", events=events))
    assert (answer.text, answer.stop_reason) == ("<think>1970?", "length")


def test_an_answer_that_the_server_aborts_is_retryable():
    events = [chunk({"content": "19"}), chunk(None, finish_reason="abort")]
    with pytest.raises(RetryableError, match="finish_reason abort"):
        complete(server_with_answer("", events=events))


def test_idle_connections_are_kept_alive():
    server = server_with_answer("yes")
    api = Api(api=server.url, model="m")

    async def options() -> tuple[int, int]:
        async with Endpoint(api, None) as endpoint:
            stream = await endpoint._open_stream(endpoint.request_body(ROW))
            connection = stream.response.extensions["network_stream"].get_extra_info("socket")
            kept = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            await stream.close()
            return kept, idle

    with serving(server):
        assert asyncio.run(options()) == (1, 60)


def test_only_the_configured_key_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-of-somebody-else")
    with_key, without = server_with_answer("yes"), server_with_answer("yes")
    complete(with_key, key=KEY)
    complete(without)
    assert with_key.headers[0]["authorization"] == f"Bearer {KEY}"
    assert without.headers[0]["authorization"] == "Bearer none"
    assert "somebody" not in json.dumps(without.headers)
    assert os.environ["OPENAI_API_KEY"] == "sk-of-somebody-else"


def test_client_variables_of_the_environment_are_not_sent(monkeypatch: pytest.MonkeyPatch):
    usual, server, elsewhere = (
        server_with_answer("yes"),
        server_with_answer("yes"),
        server_with_answer("no"),
    )
    complete(usual, key=KEY)
    for name in ("ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET", "ADMIN_KEY", "API_KEY"):
        monkeypatch.setenv(f"OPENAI_{name}", "of-somebody")
    lines = "X-Account: of-somebody\nAuthorization: Bearer of-somebody"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", lines)
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    with serving(elsewhere):
        assert complete(server, key=KEY).text == "yes"
    assert not elsewhere.requests
    sent, expected = server.headers[0], usual.headers[0]
    assert "of-somebody" not in json.dumps(sent)
    assert sent.keys() == expected.keys()
    assert {k for k in sent if sent[k] != expected[k]} == {"host"}


def fault(how: str | tuple[int, dict], kind: type, key: str | None = None, **settings) -> Exception:
    server = ApiServer(lambda body: "never", lambda number, body: how)
    with pytest.raises(kind) as caught:
        complete(server, key=key, **settings)
    assert type(caught.value) is kind
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_answer_may_be_empty():
    """The token count distinguishes it from a missing answer."""
    answer = complete(server_with_answer(""))
    assert (answer.text, answer.new_tokens) == ("", 3)


@pytest.mark.parametrize("how", FAULTS)
def test_transient_failures_are_retryable(how: str):
    error = fault(how, RetryableError, timeout_seconds=2 if how == "stall" else 9)
    assert error.reached
    assert str(error)


def error_body(message: str, **more) -> dict:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    "how",
    [
        (400, error_body("This model's maximum context length is 8192 tokens. You requested 9000")),
        (
            400,
            error_body("The input (9000 tokens) is longer than the model's context length (8192)"),
        ),
        (400, error_body("the request exceeds the available context size, try increasing it")),
        (
            400,
            error_body(
                "The input token count (9) exceeds the maximum number of tokens allowed (8)."
            ),
        ),
        (400, error_body("prompt is too long: 210000 tokens > 200000 maximum")),
        (413, error_body("Request Entity")),
        (500, error_body("Prompt of 9000 tokens is over the limit of 8192")),
    ],
    ids=lambda how: how[1]["error"]["message"][:20],
)
def test_a_prompt_that_is_too_long_is_refused(how: tuple[int, dict]):
    reason = str(fault(how, RequestRefused))
    assert reason == f"{how[0]}: {how[1]['error']['message']}"
    assert is_too_long(reason)


@pytest.mark.parametrize(
    "code", ["context_length_exceeded", "content_filter", "content_policy_violation"]
)
def test_a_refusal_names_its_code(code: str):
    reason = str(fault((400, error_body("No.", code=code)), RequestRefused))
    assert reason == f"400: No. ({code})"
    assert is_too_long(reason) == (code == "context_length_exceeded")


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            (401, error_body("Bad key")),
            "rejects the key in A_KEY (401: Bad key); export a valid key",
        ),
        (
            (404, error_body("No such model")),
            "has no model m or no endpoint chat (404: No such model)",
        ),
        (
            (405, {"detail": "Not Allowed"}),
            "or no endpoint chat (405: Not Allowed); correct api, model",
        ),
        ((402, error_body("Pay")), "the account has no credit left (402: Pay)"),
        ((403, error_body("Not yours")), "does not allow this key to use m (403: Not yours)"),
        (
            (429, error_body("Quota", code="insufficient_quota")),
            "the account has no credit left (429: Q",
        ),
        (
            (400, error_body("max_tokens?", code="unsupported_parameter")),
            "rejects a parameter of the request",
        ),
    ],
)
def test_errors_of_every_sample_are_fatal(how: tuple[int, dict], line: str):
    assert line in str(fault(how, FatalError, key_env="A_KEY"))


def test_an_invalid_request_is_not_retried():
    assert str(fault((400, error_body("n must be 1")), RequestFailed)) == "400: n must be 1"
    assert str(fault((422, {"detail": "Unexpected"}), RequestFailed)) == "422: Unexpected"


def test_a_missing_server_differs_from_one_that_resets():
    api = Api(api="http://127.0.0.1:9/v1", model="m")

    async def once():
        async with Endpoint(api, None) as endpoint:
            await endpoint.complete(endpoint.request_body(ROW))

    with pytest.raises(RetryableError) as caught:
        asyncio.run(once())
    assert not caught.value.reached


def test_a_host_that_does_not_respond_is_a_missing_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api_module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        # A full queue looks like a firewall: connections get no response.
        queue = [socket.socket() for _ in range(3)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        api = Api(api=f"http://127.0.0.1:{full.getsockname()[1]}/v1", model="m")

        async def once():
            async with Endpoint(api, None) as endpoint:
                await endpoint.complete(endpoint.request_body(ROW))

        with pytest.raises(RetryableError, match=r"^no connection within 0.2 s$") as caught:
            asyncio.run(once())
        for waiting in queue:
            waiting.close()
    assert not caught.value.reached


@pytest.mark.parametrize("retry_after", ["7", "7.0", "date"])
def test_retry_after_is_seconds_or_a_date(retry_after: str):
    if retry_after == "date":
        retry_after = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server = ApiServer(lambda body: "", lambda number, body: "429", retry_after=retry_after)
    with pytest.raises(RetryableError) as caught:
        complete(server)
    assert 0 < caught.value.wait_seconds <= 20


def test_an_invalid_retry_after_is_ignored():
    server = ApiServer(lambda body: "", lambda number, body: "429", retry_after="soon")
    with pytest.raises(RetryableError) as caught:
        complete(server)
    assert caught.value.wait_seconds is None


def test_a_key_that_the_server_repeats_is_redacted():
    echo = (401, error_body(f"Incorrect API key provided: {KEY}.\nAsk us.\x1b[31m"))
    line = str(fault(echo, FatalError, key=KEY, key_env="A_KEY"))
    assert "Incorrect API key provided: [key]. Ask us.?[31m" in line
    assert KEY not in line
    assert complete(server_with_answer(f"It is {KEY}."), key=KEY).text == "It is [key]."
    assert complete(server_with_answer("It is 12 o'clock."), key="12").text == "It is 12 o'clock."


def test_request_keys_differ_where_answers_may():
    def key(row=ROW, **settings):
        endpoint = Endpoint(Api(**{"api": "http://a/v1", "model": "m", **settings}), None)
        return endpoint.request_key(endpoint.request_body(row))

    others = [
        key(api="http://b/v1"),
        key(model="n"),
        key(endpoint="completions"),
        key(temperature=1.0),
        key(system_prompt="Be brief"),
        key(extra_body={"seed": 1}),
        key({**ROW, "context": "Today.\n"}),
        key({**ROW, "max_new_tokens": 8}),
    ]
    assert len({key(), *others}) == 9
    same = [key(retries=0), key(concurrency=9), key(price={"prompt": 1, "completion": 1})]
    assert {key(), *same} == {key()}
