"""Models behind an OpenAI-compatible API: one request, one streamed answer, faults told apart."""

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

from needlework.config.models import Api

CONNECT_SECONDS = 30.0
_REASON_CHARACTERS = 300
_SHORTEST_SECRET_CHARACTERS = 8
_TOO_LONG = re.compile(
    r"context.{0,3}(length|size|window)|(prompt|input|request)\b.{0,80}\btoo (long|large)"
    r"|^413\b|maximum number of tokens"
    r"|exceeds? .{0,40}\btokens|longer than .{0,40}\b(context|tokens)",
    re.IGNORECASE | re.DOTALL,
)
_REFUSALS = ("context_length_exceeded", "content_filter", "content_policy_violation")
_UNKNOWN_KEY = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


@dataclass(frozen=True)
class Answer:
    """What a model said, and what the API counted; None where it does not say."""

    text: str
    stop_reason: str
    """eos, or length where the room for the answer was used up."""
    first_token_seconds: float
    """From the request to the first text, thoughts counted."""
    seconds: float
    """From the request to the end."""
    prompt_tokens: int | None
    new_tokens: int | None
    """Thoughts counted."""
    cached_tokens: int | None


class Fault(Exception):
    """No answer; its text is the reason, in one line without the key."""


class Refused(Fault):
    """The API will not answer this prompt: too long, or against its rules."""


class Failed(Fault):
    """The API did not answer, and would not if it were asked again."""


class TryAgain(Fault):
    """The API did not answer this time."""

    def __init__(self, reason: str, wait_seconds: float | None = None, reached: bool = True):
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """What the API asks for; None: it does not say."""
        self.reached = reached
        """Whether there was a server at all."""


class Stop(Fault):
    """What is wrong holds for every sample: the key, the model's name, the account."""

    def __init__(self, reason: str, of_all: bool = True):
        super().__init__(reason)
        self.of_all = of_all
        """False: where others were answered, it is this prompt."""


class Endpoint:
    """One model of one API. Ask within `async with`.

    Args:
        api: its part of the experiment file.
        key: what `api.key_env` holds.
    """

    def __init__(self, api: Api, key: str | None):
        self.api, self._key = api, key

    async def __aenter__(self) -> "Endpoint":
        with _without_variables("OPENAI_"):
            self._client = openai.AsyncOpenAI(
                base_url=self.api.api,
                # It takes no None.
                api_key=self._key or "none",
                timeout=openai.Timeout(self.api.timeout_seconds, connect=CONNECT_SECONDS),
                max_retries=0,
            )
        return self

    async def __aexit__(self, *_) -> None:
        await self._client.close()

    def request(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The body of the request that asks a sample (columns as in `tasks.generate.SAMPLES`)."""
        api = self.api
        body = {
            "model": api.model,
            "temperature": api.temperature,
            api.max_tokens_key: row["max_new_tokens"] + api.thinking_tokens,
        }
        if api.endpoint == "completions":
            body["prompt"] = row["prompt"]
        else:
            asked, prefix = row["context"] + row["question"], row["answer_prefix"]
            turns = [("user", asked if api.prefill_answer else asked + prefix)]
            if api.system_prompt is not None:
                turns.insert(0, ("system", api.system_prompt))
            if api.prefill_answer and prefix.strip():
                turns.append(("assistant", prefix.strip()))
            body["messages"] = [{"role": role, "content": text} for role, text in turns]
        return {k: v for k, v in body.items() if v is not None} | api.extra_body

    def key_of(self, request: dict[str, Any]) -> str:
        """A hash of all that an answer follows from."""
        told = json.dumps([self.api.api, self.api.endpoint, request], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    async def ask(self, request: dict[str, Any]) -> Answer:
        """The answer, read as it is written.

        Raises:
            Fault: there is none; a class of it says whether to ask again.
        """
        try:
            async with asyncio.timeout(self.api.timeout_seconds):
                return await self._read(request)
        except (TimeoutError, openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                said = f"no connection within {CONNECT_SECONDS:g} s"
                raise TryAgain(said, reached=False) from None
            raise TryAgain(f"no whole answer within {self.api.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            raise self._from_status(error) from None
        except openai.APIConnectionError as error:
            reached = type(error.__cause__).__name__ != "ConnectError"
            raise TryAgain(self._line(error.__cause__ or error), reached=reached) from None
        except openai.APIError as error:
            reason = self._line(error.body if isinstance(error.body, str) else error.message)
            raise (Refused if is_too_long(reason) else TryAgain)(reason) from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # The client reads JSON without checking what is in it.
            raise TryAgain(f"no sense in the response: {self._line(error)}") from None

    async def _read(self, request: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        create = self._client.chat.completions.create
        extra = dict(request)
        known = {"model": extra.pop("model")}
        if self.api.endpoint == "completions":
            create = self._client.completions.create
            known["prompt"] = extra.pop("prompt")
        else:
            known["messages"] = extra.pop("messages")
        stream = await create(
            **known, stream=True, stream_options={"include_usage": True}, extra_body=extra
        )
        text, finish, usage, first = [], None, None, None
        try:
            async with stream:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices or []:
                        said, thought = _said(choice)
                        if first is None and (said or thought):
                            first = time.perf_counter()
                        text.append(said or "")
                        finish = choice.finish_reason or finish
        except (openai.APIConnectionError, ValueError):
            # Broken behind its end, the answer is whole, and paid.
            if finish is None:
                raise
        ended = time.perf_counter()
        answer, new_tokens = "".join(text), _count(usage, "completion_tokens")
        if finish is None:
            raise TryAgain("the stream ended before the answer did")
        if finish == "content_filter":
            raise Refused("the API filtered the answer")
        if not answer and not new_tokens:
            raise TryAgain("the API gave an empty answer")
        return Answer(
            self.without_key(answer),
            "length" if finish == "length" else "eos",
            (first or ended) - started,
            ended - started,
            _count(usage, "prompt_tokens"),
            new_tokens,
            _count(getattr(usage, "prompt_tokens_details", None), "cached_tokens"),
        )

    def _from_status(self, error: openai.APIStatusError) -> Fault:
        api, status = self.api, error.status_code
        reason = f"{status}: {self._line(_message(error))}"
        if status == 401:
            held = f"the key in {api.key_env}" if api.key_env else "a request without key"
            remedy = "export a valid key" if api.key_env else "name its key_env"
            return Stop(f"{api.api} refuses {held} ({reason}); {remedy} and run again")
        if status in (404, 405):
            return Stop(
                f"{api.api} has no model {api.model}, or no endpoint {api.endpoint} ({reason}); "
                "mend api, model or endpoint"
            )
        if status == 402 or error.code == "insufficient_quota":
            return Stop(f"{api.api}: the account has nothing left ({reason}); fill it, run again")
        if status == 403:
            what = f"{api.api} does not let this key ask {api.model} ({reason})"
            return Stop(what, of_all=False)
        if error.code in _UNKNOWN_KEY:
            return Stop(
                f"{api.api} refuses a key of the request ({reason}); write temperature: null, "
                "another max_tokens_key, or mend extra_body"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return TryAgain(reason, _retry_after_seconds(error.response.headers))
        if error.code in _REFUSALS:
            return Refused(f"{reason} ({error.code})")
        return (Refused if is_too_long(reason) else Failed)(reason)

    def _line(self, told: object) -> str:
        """What was told, in one line that says something, cut, and without the key."""
        line = " ".join(str(told).split()) or type(told).__name__
        line = "".join(c if c.isprintable() else "?" for c in self.without_key(line))
        return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "..."

    def without_key(self, text: str) -> str:
        """`text`, with the key blotted out: a server may repeat what it was sent."""
        # A word like `local`, for servers that ask for any key, is no secret, and may be an answer.
        if self._key is None or len(self._key) < _SHORTEST_SECRET_CHARACTERS:
            return text
        return text.replace(self._key, "[key]")


@contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    """Hide environment variables: the client would take its organization, project, headers and keys
    from them, and send them wherever `api` leads."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _said(choice: Any) -> tuple[str | None, str | None]:
    """Text and thought of one piece of a chat's answer, or text of a completion's."""
    delta = getattr(choice, "delta", None)
    if delta is None:
        return choice.text, None
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    return delta.content, thought


def _count(usage: Any, name: str) -> int | None:
    found = getattr(usage, name, None)
    return found if type(found) is int and found >= 0 else None


def _message(error: openai.APIStatusError) -> str:
    """What the server says, out of the JSON that it says it in."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return body if isinstance(body, str) and body.strip() else error.message


def is_too_long(reason: str) -> bool:
    """Whether what was Refused is so for its length."""
    return bool(_TOO_LONG.search(reason))


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks for: seconds, or a date."""
    told = headers.get("retry-after")
    if told is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(told))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    return None
