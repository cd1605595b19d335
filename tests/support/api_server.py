"""HTTP server that speaks OpenAI's protocol and fails as a test prescribes."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = (
    *("429", "500", "reset", "cut off", "stall", "truncated"),
    *("nonsense", "empty", "html", "no text"),
)
STALL_SECONDS = 30


class ApiServer:
    """The server, its answers, and a record of its requests.

    Args:
        answer: text of the answer to a request's body.
        fault: failure of the n-th request (from 1): one of FAULTS, a (status, body) pair, or None.
        seconds: duration of an answer.
        retry_after: header of a 429 response.
        events: the chunks of every answer, instead of the usual ones.
        prompt_tokens: tokens of a request's prompt; None: one per character.
    """

    def __init__(
        self,
        answer: Callable[[dict], str],
        fault: Callable[[int, dict], str | tuple[int, dict] | None] = lambda n, body: None,
        seconds: float = 0.0,
        retry_after: str = "0",
        events: list[dict] | None = None,
        prompt_tokens: Callable[[dict], int] | None = None,
    ):
        self.answer, self.fault, self.seconds = answer, fault, seconds
        self.retry_after, self.events, self.prompt_tokens = retry_after, events, prompt_tokens
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.answered_requests: list[dict] = []
        self.concurrent = self.max_concurrent = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.api = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"


@contextmanager
def serving(server: ApiServer) -> Iterator[ApiServer]:
    thread = threading.Thread(target=server._http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server._http.shutdown()
        server._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # clients that disconnect


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_POST(self):
        api: ApiServer = self.server.api
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with api.lock:
            api.requests.append(body)
            api.headers.append({k.lower(): v for k, v in self.headers.items()})
            api.times.append(time.monotonic())
            number = len(api.requests)
            api.concurrent += 1
            api.max_concurrent = max(api.max_concurrent, api.concurrent)
        try:
            self._respond(api, body, api.fault(number, body))
        finally:
            with api.lock:
                api.concurrent -= 1

    def _respond(self, api: ApiServer, body: dict, fault):
        api.stopping.wait(api.seconds)
        if isinstance(fault, tuple):
            return self._json(*fault)
        if fault == "429":
            message = {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}
            return self._json(429, message, {"Retry-After": api.retry_after})
        if fault == "500":
            return self._json(500, {"error": {"message": "The server is <b>out</b> of order"}})
        if fault == "reset":
            return self._reset()
        if fault == "stall":
            api.stopping.wait(STALL_SECONDS)
            return self._reset()
        if fault == "html":
            return self._send(200, "text/html", b"<html><script>alert(1)</script></html>")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if api.events is not None:
            for event in api.events:
                self._event(event)
            return self._end("data: [DONE]\n\n")
        if fault == "nonsense":
            return self._end("data: {not json at all\n\n")
        if fault == "empty":
            self._event({"choices": []})
            return self._end("data: [DONE]\n\n")
        if fault == "no text":
            choice = {"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}
            self._event({"choices": [choice]})
            return self._end("data: [DONE]\n\n")
        self._stream(api, body, fault)

    def _stream(self, api: ApiServer, body: dict, fault):
        chat, text = self.path.endswith("/chat/completions"), api.answer(body)
        half = len(text) // 2
        for part in (text[:half], text[half:]):
            piece = {"delta": {"content": part}} if chat else {"text": part}
            self._event({"choices": [{"index": 0, **piece, "finish_reason": None}]})
            if fault == "cut off":
                return self._reset()
            if fault == "truncated":
                return self._end("")
        with api.lock:
            api.answered_requests.append(body)
        last = {"delta": {}} if chat else {"text": ""}
        self._event({"choices": [{"index": 0, **last, "finish_reason": "stop"}]})
        prompt = json.dumps(body.get("messages") or body["prompt"])
        read = len(prompt) if api.prompt_tokens is None else api.prompt_tokens(body)
        usage = {"prompt_tokens": read, "completion_tokens": 3, "total_tokens": 3}
        usage["prompt_tokens_details"] = {"cached_tokens": 2}
        self._event({"choices": [], "usage": usage})
        self._end("data: [DONE]\n\n")

    def _event(self, data: dict):
        chunk = {"id": "x", "object": "chunk", "created": 0, "model": "m", **data}
        self._chunk(f"data: {json.dumps(chunk)}\n\n")

    def _chunk(self, text: str):
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end(self, text: str):
        if text:
            self._chunk(text)
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, body: dict, headers: dict[str, str] | None = None):
        self._send(status, "application/json", json.dumps(body).encode(), headers)

    def _send(self, status: int, kind: str, data: bytes, headers: dict | None = None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _reset(self):
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # Close now rather than when the handler ends, so that the client sees a reset.
        self.wfile.flush()
        socket.socket(fileno=self.connection.detach()).close()
