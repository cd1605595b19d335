"""Client of OpenAI-compatible APIs: one request, one streamed answer, classified errors."""

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai.types.chat import ChatCompletionStreamOptionsParam

from needlework.config.models.api import Api

CONNECT_SECONDS = 30.0
_REASON_CHARACTERS = 300
_SHORTEST_SECRET_CHARACTERS = 8
_TOO_LONG = re.compile(
    r"context.{0,3}(length|size|window)|(prompt|input|request)\b.{0,80}\btoo (long|large)"
    r"|^413\b|maximum number of tokens"
    r"|exceeds? .{0,40}\btokens|longer than .{0,40}\b(context|tokens)",
    re.IGNORECASE | re.DOTALL,
)
_REFUSAL_CODES = ("context_length_exceeded", "content_filter", "content_policy_violation")
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
            messages = [("user", question if api.prefill_answer else question + prefix)]
            if api.system_prompt is not None:
                messages.insert(0, ("system", api.system_prompt))
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
            raise self._status_error(error) from None
        except openai.APIConnectionError as error:
            reached = type(error.__cause__).__name__ != "ConnectError"
            raise RetryableError(
                self._one_line(error.__cause__ or error), reached=reached
            ) from None
        except openai.APIError as error:
            reason = self._one_line(error.body if isinstance(error.body, str) else error.message)
            raise (RequestRefused if is_too_long(reason) else RetryableError)(reason) from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # The client does not validate the JSON that it reads.
            raise RetryableError(f"invalid response: {self._one_line(error)}") from None

    async def _read(self, body: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        stream = await self._open_stream(body)
        text: list[str] = []
        finish_reason, usage, first_token = None, None, None
        try:
            async with stream:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices or []:
                        answer_part, reasoning_part = _parts_of_choice(choice)
                        if first_token is None and (answer_part or reasoning_part):
                            first_token = time.perf_counter()
                        text.append(answer_part or "")
                        finish_reason = choice.finish_reason or finish_reason
        except (openai.APIConnectionError, ValueError):
            # A stream that breaks after the finish reason has delivered the answer, which is paid.
            if finish_reason is None:
                raise
        ended = time.perf_counter()
        answer, new_tokens = "".join(text), _count(usage, "completion_tokens")
        if finish_reason is None:
            raise RetryableError("the stream ended before the answer was complete")
        if finish_reason == "content_filter":
            raise RequestRefused("the API filtered the answer")
        if not answer and not new_tokens:
            raise RetryableError("the API gave an empty answer")
        return Answer(
            self.redact_key(answer),
            "length" if finish_reason == "length" else "eos",
            (first_token or ended) - started,
            ended - started,
            _count(usage, "prompt_tokens"),
            new_tokens,
            _count(getattr(usage, "prompt_tokens_details", None), "cached_tokens"),
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

    def _status_error(self, error: openai.APIStatusError) -> RequestError:
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
        if status in (408, 409, 425, 429) or status >= 500:
            return RetryableError(reason, _retry_after_seconds(error.response.headers))
        if error.code in _REFUSAL_CODES:
            return RequestRefused(f"{reason} ({error.code})")
        return (RequestRefused if is_too_long(reason) else RequestFailed)(reason)

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


def _parts_of_choice(choice: Any) -> tuple[str | None, str | None]:
    """Answer and reasoning text of one streamed choice; a completion has no reasoning."""
    delta = getattr(choice, "delta", None)
    if delta is None:
        return choice.text, None
    reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    return delta.content, reasoning


def _count(usage: Any, name: str) -> int | None:
    count = getattr(usage, name, None)
    return count if type(count) is int and count >= 0 else None


def _error_message(error: openai.APIStatusError) -> str:
    """The server's message, extracted from its JSON."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return body if isinstance(body, str) and body.strip() else error.message


def is_too_long(reason: str) -> bool:
    """Whether the reason of a RequestRefused is the prompt's length."""
    return bool(_TOO_LONG.search(reason))


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
