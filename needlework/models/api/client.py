"""Client of OpenAI-compatible APIs: one request, one streamed answer, classified errors."""

import asyncio
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import getproxies

import httpx2
import openai
from openai.types.chat import ChatCompletionStreamOptionsParam

from needlework.config.models.api import Api
from needlework.models.api.chunks import (
    FAILURE_REASONS,
    FILTER_REASONS,
    choices,
    count,
    field,
    is_length,
    parts_of_choice,
)
from needlework.models.api.overflow import is_too_long, names_prompt_size
from needlework.reasoning.formats import THINK

CONNECT_SECONDS = 30.0
_REASON_CHARACTERS = 300
_SHORTEST_SECRET_CHARACTERS = 8
_KEEPALIVE_SECONDS = 60
_REFUSAL_CODES = (
    *("context_length_exceeded", "model_max_prompt_tokens_exceeded", "string_above_max_length"),
    *("exceed_context_size_error", "prompt_too_long", "request_too_large"),
    *("content_filter", "content_policy_violation"),
)
_UNSUPPORTED_PARAMETER_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


@dataclass(frozen=True)
class Answer:
    """Text and timing of an answer, and the API's token counts (None if not reported)."""

    text: str
    stop_reason: str
    """eos, or length if max_new_tokens was used up."""
    first_token_seconds: float
    """From the request to the first text, reasoning included."""
    seconds: float
    """From the request to the end."""
    prompt_tokens: int | None
    new_tokens: int | None
    """Reasoning included."""
    cached_tokens: int | None


class RequestError(Exception):
    """A request without an answer; the message is one line without the key."""


class RequestRefused(RequestError):
    """The API refuses this prompt: it is too long, or violates a policy."""


class RequestFailed(RequestError):
    """The request failed, and would fail again."""


class RetryableError(RequestError):
    """The request failed, but may succeed later."""

    def __init__(self, reason: str, wait_seconds: float | None = None, reached: bool = True):
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """Pause that the API asks for (Retry-After); None if it names none."""
        self.reached = reached
        """Whether a server accepted the connection."""


class FatalError(RequestError):
    """An error that concerns every sample: the key, the model's name, the account."""

    def __init__(self, reason: str, affects_all: bool = True):
        super().__init__(reason)
        self.affects_all = affects_all
        """False: if other samples were answered, the error concerns this prompt only."""


class Endpoint:
    """One model of one API. Send requests within `async with`.

    Args:
        api: the model's entry in the experiment file.
        key: content of the variable `api.key_env`.
    """

    def __init__(self, api: Api, key: str | None):
        self.api, self._key = api, key

    async def __aenter__(self) -> "Endpoint":
        with _without_variables("OPENAI_"):
            self._client = openai.AsyncOpenAI(
                base_url=self.api.api,
                # The client does not accept None.
                api_key=self._key or "none",
                timeout=openai.Timeout(self.api.timeout_seconds, connect=CONNECT_SECONDS),
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(mounts=_keepalive_mounts()),
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def request_body(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Build the body of the request for a sample (columns as in `tasks.generate.SAMPLES`)."""
        api = self.api
        body = {
            "model": api.model,
            "temperature": api.temperature,
            api.max_tokens_key: row["max_new_tokens"] + api.thinking_tokens,
        }
        if api.endpoint == "completions":
            body["prompt"] = row["prompt"]
        else:
            question, prefix = row["context"] + row["question"], row["answer_prefix"]
            messages = [
                (message["role"], message["content"]) for message in row.get("history") or []
            ]
            if api.system_prompt is not None and "system" not in [role for role, _ in messages]:
                messages.insert(0, ("system", api.system_prompt))
            messages.append(("user", question if api.prefill_answer else question + prefix))
            if api.prefill_answer and prefix.strip():
                messages.append(("assistant", prefix.strip()))
            body["messages"] = [{"role": role, "content": text} for role, text in messages]
        return {k: v for k, v in body.items() if v is not None} | api.extra_body

    def request_key(self, body: dict[str, Any]) -> str:
        """Hash everything that an answer depends on."""
        content = json.dumps([self.api.api, self.api.endpoint, body], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    async def complete(self, body: dict[str, Any]) -> Answer:
        """Send one request and read the streamed answer.

        Raises:
            RequestError: there is no answer; the subclass says whether to retry.
        """
        try:
            async with asyncio.timeout(self.api.timeout_seconds):
                return await self._read(body)
        except (TimeoutError, openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                reason = f"no connection within {CONNECT_SECONDS:g} s"
                raise RetryableError(reason, reached=False) from None
            raise RetryableError(
                f"no complete answer within {self.api.timeout_seconds:g} s"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error, body) from None
        except openai.APIConnectionError as error:
            reached = type(error.__cause__).__name__ != "ConnectError"
            raise RetryableError(
                self._one_line(error.__cause__ or error), reached=reached
            ) from None
        except openai.APIError as error:
            reason = self._one_line(error.body if isinstance(error.body, str) else error.message)
            if is_too_long(reason):
                raise RequestRefused(reason) from None
            raise RetryableError(reason) from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # The client does not validate the JSON that it reads.
            raise RetryableError(f"invalid response: {self._one_line(error)}") from None

    async def _read(self, body: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        stream = await self._open_stream(body)
        text: list[str] = []
        reasoning: list[str] = []
        finish_reason, usage, first_token = None, None, None
        is_complete = False
        try:
            async with stream:
                async for chunk in _read_chunks(stream):
                    usage = field(chunk, "usage") or usage
                    # Usage without choices is the last chunk.
                    is_complete |= (
                        not choices(chunk) and count(usage, "completion_tokens") is not None
                    )
                    for choice in choices(chunk):
                        answer_part, reasoning_part = parts_of_choice(choice)
                        if first_token is None and (answer_part or reasoning_part):
                            first_token = time.perf_counter()
                        text.append(answer_part)
                        reasoning.append(reasoning_part)
                        finish_reason = field(choice, "finish_reason") or finish_reason
        except (openai.APIError, ValueError):
            # A stream that breaks after the finish reason has delivered the answer, which is paid.
            if finish_reason is None:
                raise
        ended = time.perf_counter()
        answer, new_tokens = "".join(text), count(usage, "completion_tokens")
        if not answer.strip() and any(reasoning):
            # All tokens went into reasoning: keep it as one that is never closed.
            answer = (self.api.thought_format or THINK).open + "".join(reasoning)
        if finish_reason is None and is_complete:
            limit = body.get(self.api.max_tokens_key)
            finish_reason = "length" if limit and (new_tokens or 0) >= limit else "stop"
        if finish_reason is None:
            raise RetryableError("the stream ended before the answer was complete")
        if finish_reason.lower() in FILTER_REASONS:
            raise RequestRefused("the API filtered the answer")
        if finish_reason.lower() in FAILURE_REASONS:
            raise RetryableError(f"the answer ended with finish_reason {finish_reason}")
        if not answer and not new_tokens:
            raise RetryableError("the API gave an empty answer")
        return Answer(
            self.redact_key(answer),
            "length" if is_length(finish_reason) else "eos",
            (first_token or ended) - started,
            ended - started,
            count(usage, "prompt_tokens"),
            new_tokens,
            count(field(usage, "prompt_tokens_details"), "cached_tokens"),
        )

    async def _open_stream(self, body: dict[str, Any]) -> openai.AsyncStream[Any]:
        options: ChatCompletionStreamOptionsParam = {"include_usage": True}
        extra = dict(body)
        model = extra.pop("model")
        if self.api.endpoint == "completions":
            prompt = extra.pop("prompt")
            return await self._client.completions.create(
                model=model, prompt=prompt, stream=True, stream_options=options, extra_body=extra
            )
        messages = extra.pop("messages")
        return await self._client.chat.completions.create(
            model=model, messages=messages, stream=True, stream_options=options, extra_body=extra
        )

    def _status_error(self, error: openai.APIStatusError, body: dict[str, Any]) -> RequestError:
        api, status = self.api, error.status_code
        reason = f"{status}: {self._one_line(_error_message(error))}"
        if status == 401:
            credential = f"the key in {api.key_env}" if api.key_env else "a request without a key"
            remedy = "export a valid key" if api.key_env else "set key_env"
            return FatalError(f"{api.api} rejects {credential} ({reason}); {remedy} and run again")
        if status in (404, 405):
            return FatalError(
                f"{api.api} has no model {api.model} or no endpoint {api.endpoint} ({reason}); "
                "correct api, model or endpoint"
            )
        if status == 402 or error.code == "insufficient_quota":
            return FatalError(
                f"{api.api}: the account has no credit left ({reason}); add credit and run again"
            )
        if status == 403:
            return FatalError(
                f"{api.api} does not allow this key to use {api.model} ({reason})",
                affects_all=False,
            )
        if error.code in _UNSUPPORTED_PARAMETER_CODES:
            return FatalError(
                f"{api.api} rejects a parameter of the request ({reason}); write temperature: "
                "null, another max_tokens_key, or correct extra_body"
            )
        if error.code in _REFUSAL_CODES:
            return RequestRefused(f"{reason} ({error.code})")
        if is_too_long(reason):
            return RequestRefused(reason)
        if status in (408, 409, 425, 429):
            return RetryableError(reason, _retry_after_seconds(error.response.headers))
        prompt = json.dumps(body.get("messages") or body["prompt"], ensure_ascii=False)
        new_tokens = body.get(api.max_tokens_key) or 0
        if names_prompt_size(_error_message(error), len(prompt), new_tokens):
            return RequestRefused(f"{reason} (context length)")
        if status >= 500:
            return RetryableError(reason, _retry_after_seconds(error.response.headers))
        return RequestFailed(reason)

    def _one_line(self, message: object) -> str:
        """Format a message as one printable line of limited length, without the key."""
        line = " ".join(str(message).split()) or type(message).__name__
        line = "".join(c if c.isprintable() else "?" for c in self.redact_key(line))
        return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "..."

    def redact_key(self, text: str) -> str:
        """Replace the key in `text`: a server may repeat what it was sent."""
        # A placeholder such as `local`, for servers that accept any key, may occur in an answer.
        if self._key is None or len(self._key) < _SHORTEST_SECRET_CHARACTERS:
            return text
        return text.replace(self._key, "[key]")


@contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    """Hide environment variables, from which the client would take organization, project, headers
    and keys and send them to `api`."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


async def _read_chunks(stream: openai.AsyncStream[Any]) -> AsyncIterator[Any]:
    """The chunks of a stream; a server that ignores `stream` sends one JSON document instead."""
    if stream.response.headers.get("content-type", "").startswith("application/json"):
        yield json.loads(await stream.response.aread())
        return
    async for chunk in stream:
        yield chunk


def _keepalive_mounts() -> dict[str, httpx2.AsyncBaseTransport]:
    """Transports whose idle connections send TCP probes, so that a long prefill is not cut off."""
    if "all" in getproxies():
        return {}
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    idle = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"
    for name, value in {
        idle: _KEEPALIVE_SECONDS,
        "TCP_KEEPINTVL": _KEEPALIVE_SECONDS,
        "TCP_KEEPCNT": 5,
    }.items():
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    transport = httpx2.AsyncHTTPTransport(
        limits=openai.DEFAULT_CONNECTION_LIMITS, socket_options=options
    )
    return {"all://": transport}


def _error_message(error: openai.APIStatusError) -> str:
    """The server's message, extracted from its JSON."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return body if isinstance(body, str) and body.strip() else error.message


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Parse Retry-After: seconds, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None
