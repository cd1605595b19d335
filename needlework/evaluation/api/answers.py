"""Answers of a model behind an API: concurrent requests, retried until each sample has one."""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from needlework.config.models.api import Api, Price
from needlework.evaluation.answer_journal import AnswerJournal
from needlework.evaluation.answer_tables import MEASUREMENTS, PREDICTIONS, Columns
from needlework.evaluation.api.rate_limit import RateLimiter
from needlework.evaluation.api.truncation import truncated_in_cell
from needlework.models.api.client import (
    Answer,
    Endpoint,
    FatalError,
    RequestFailed,
    RequestRefused,
    RetryableError,
)
from needlework.runtime.progress import Track, track

_log = logging.getLogger(__name__)

_PREDICTIONS: Columns = {**PREDICTIONS, "status": pl.String, "reason": pl.String}
_MEASUREMENTS: Columns = {
    **MEASUREMENTS,
    "sample_length": pl.Int64,
    "prompt_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "price_dollars": pl.Float64,
    "attempts": pl.Int64,
}
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
_LONGEST_PAUSE_SECONDS = 3600.0


def request_answers(
    api: Api, samples: pl.DataFrame, *, system: str, key: str | None, journal: str | Path
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Answer samples; return predictions and measurements, one row per sample in their order.

    The journal receives each answer and each refusal as soon as it arrives, and no sample that it
    holds is requested again. Samples that failed are requested again by the next run.

    Predictions: status is ok, refused (the API refuses the prompt: too long, or filtered), error
    (all retries failed, or the request is invalid) or truncated (answered, but the API counts so
    few tokens that it must have cut the prompt). Unless it is ok, reason is one line; the
    prediction is empty if refused or failed. new_tokens is the API's count, reasoning included.
    Densities and cache_bytes are null.

    Measurements: prefill_seconds is the time to the first text, including network and queue;
    decode_seconds the time from there to the end; both of the attempt that succeeded. sample_length
    is the sample's own count of tokens (or characters). prompt_tokens and cached_tokens are the
    API's counts, price_dollars is the price of that attempt, attempts the number of requests; null
    where unknown. Memory is null.

    Raises:
        ValueError: an error that concerns every sample: the key, the model, the account, no
            server. Answers received before it are in the journal.
    """
    return asyncio.run(_AnswerRequests(api, samples, system, key, AnswerJournal(journal)).run())


def is_answered(api: Api, samples: pl.DataFrame, journal: str | Path) -> bool:
    """Whether the journal holds every answer, so that `request_answers` makes no request."""
    endpoint, entries = Endpoint(api, None), AnswerJournal(journal).read()
    bodies = map(endpoint.request_body, samples.iter_rows(named=True))
    return all(endpoint.request_key(body) in entries for body in bodies)


def empty_tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of `request_answers` without rows."""
    return pl.DataFrame(schema=_PREDICTIONS), pl.DataFrame(schema=_MEASUREMENTS)


class _AnswerRequests:
    """The requests of one cell."""

    def __init__(
        self, api: Api, samples: pl.DataFrame, system: str, key: str | None, journal: AnswerJournal
    ):
        self.api, self.samples, self.system, self.journal = api, samples, system, journal
        self.endpoint = Endpoint(api, key)
        self.rate_limiter = RateLimiter(api.requests_per_minute, api.tokens_per_minute)
        self.entries = journal.load()
        self.rows: dict[int, dict[str, Any]] = {}
        self.stop_reason: str | None = None
        self.stopped = asyncio.Event()
        self.journal_lock = asyncio.Lock()
        self.was_reached, self.has_answers = False, bool(self.entries)

    async def run(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        name = f"{self.system} {self.samples['task'][0]} {self.samples['length'][0]}"
        async with self.endpoint:
            if self.api.test_mode and not is_answered(self.api, self.samples, self.journal.path):
                await self._send_test_request()
            with track(description=name, total=len(self.samples), unit="sample") as progress:
                queue = enumerate(self.samples.iter_rows(named=True))
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(self.api.concurrency):
                            group.create_task(self._work(queue, progress))
                except* OSError as errors:
                    self._stop(f"{self.journal.path}: {errors.exceptions[0]}")
        if self.stop_reason is not None:
            raise ValueError(self.stop_reason)
        self._warn(name)
        return self._tables()

    async def _send_test_request(self) -> None:
        """Send the first sample's question without its context."""
        row = self.samples.row(0, named=True)
        question = row["prompt"].replace(row["context"], "", 1)
        entry = await self._entry(
            {**row, "context": "", "prompt": question, "sample": -1, "tokens": 0}
        )
        if self.stop_reason is None and entry["status"] == "error":
            self._stop(f"{self.api.api} does not answer a short test prompt: {entry['reason']}")
        if self.stop_reason is not None:
            raise ValueError(self.stop_reason)

    async def _work(self, queue: Iterator[tuple[int, dict[str, Any]]], progress: Track) -> None:
        for index, row in queue:
            if self.stop_reason is not None:
                return
            self.rows[index] = await self._entry(row)
            progress.update()

    async def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        """The journal's entry for a sample, requested if it is missing."""
        body = self.endpoint.request_body(row)
        key = self.endpoint.request_key(body)
        if key in self.entries:
            return self.entries[key]
        attempts, answer, status, reason = await self._request(body, row)
        entry = {"key": key, "sample": row["sample"], "status": status, "reason": reason}
        entry |= {"attempts": attempts, "answer": answer and asdict(answer)}
        if status != "error":
            # A slow disk must not delay requests whose time is being measured.
            async with self.journal_lock:
                await asyncio.to_thread(self.journal.add, entry)
        return entry

    async def _request(
        self, body: dict[str, Any], row: dict[str, Any]
    ) -> tuple[int, Answer | None, str, str | None]:
        """Send a request until it succeeds; returns attempts, answer, status and reason."""
        attempts = 0

        async def attempt() -> Answer:
            nonlocal attempts
            await self._wait_for_rate_limit()
            self.rate_limiter.start(row["tokens"] + row["max_new_tokens"] + api.thinking_tokens)
            attempts += 1
            try:
                answer = await self.endpoint.complete(body)
            except RetryableError as error:
                self.was_reached |= error.reached
                raise
            self.was_reached = self.has_answers = True
            return answer

        def pause_all(state: RetryCallState) -> None:
            error, wait = _error_of(state), state.upcoming_sleep
            _log.info("sample %s: %s; next attempt in %.1f s", row["sample"], error, wait)
            self._pause_all(error)

        api = self.api
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(RetryableError),
            stop=stop_after_attempt(api.retries + 1),
            wait=_wait_seconds,
            before_sleep=pause_all,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer: Answer = await retrying(attempt)
            return attempts, answer, "ok", None
        except RequestRefused as error:
            return attempts, None, "refused", str(error)
        except RequestFailed as error:
            return attempts, None, "error", str(error)
        except FatalError as error:
            if self.has_answers and not error.affects_all:
                return attempts, None, "refused", str(error)
            self._stop(str(error))
            return attempts, None, "error", str(error)
        except RetryableError as error:
            reason = f"{error} ({attempts} attempts)"
            if not self.was_reached:
                self._stop(f"{api.api} cannot be reached: {reason}; is it running?")
            return attempts, None, "error", reason

    async def _wait_for_rate_limit(self) -> None:
        """Wait until the next request may start.

        Raises:
            RequestFailed: the run is stopping.
        """
        while self.stop_reason is None and (wait := self.rate_limiter.wait_seconds) > 0:
            await self._sleep(wait)
        if self.stop_reason is not None:
            raise RequestFailed(self.stop_reason)

    def _pause_all(self, error: RetryableError) -> None:
        """Pause all requests for as long as the API asks."""
        seconds = error.wait_seconds
        if seconds is None:
            return
        if seconds > _LONGEST_PAUSE_SECONDS:
            self._stop(
                f"{self.api.api} asks to wait {seconds:,.0f} s ({error}); run again after that: "
                "answers so far are kept"
            )
        self.rate_limiter.pause(seconds)

    def _stop(self, reason: str) -> None:
        """Start no more requests; those in flight are paid for, so they are awaited."""
        self.stop_reason = self.stop_reason or reason
        self.stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep until `seconds` have passed or the run stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)

    def _warn(self, name: str) -> None:
        """Log samples without an answer, and prompts that the API truncates."""
        for status in ("refused", "error"):
            rows = [row for row in self.rows.values() if row["status"] == status]
            if rows:
                _log.warning("%s: %d %s, such as: %s", name, len(rows), status, rows[0]["reason"])
        truncated = [reason for reason in self._truncated() if reason]
        if truncated:
            _log.warning("%s: %d truncated, such as: %s", name, len(truncated), truncated[0])

    def _truncated(self) -> list[str | None]:
        """For each sample, why its prompt was truncated by the server, or None."""
        entries = self._entries_in_order()
        counted = [entry["answer"] and entry["answer"]["prompt_tokens"] for entry in entries]
        has_tokens = self.api.tokenizer is not None
        return truncated_in_cell(self.samples["tokens"].to_list(), counted, has_tokens)

    def _entries_in_order(self) -> list[dict[str, Any]]:
        return [self.rows[index] for index in range(len(self.samples))]

    def _tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = self.samples.select("task", "length", "sample").rows(named=True)
        lengths = self.samples["tokens"]
        predictions, measurements = [], []
        for key, length, entry, truncated in zip(
            keys, lengths, self._entries_in_order(), self._truncated(), strict=True
        ):
            is_cut = entry["status"] == "ok" and truncated is not None
            sample = {"system": self.system, **key}
            answer = entry["answer"] or {}
            predictions.append(
                {
                    **sample,
                    "prediction": answer.get("text", ""),
                    "new_tokens": answer.get("new_tokens"),
                    "stop_reason": answer.get("stop_reason"),
                    "status": "truncated" if is_cut else entry["status"],
                    "reason": truncated if is_cut else entry["reason"],
                }
            )
            measurements.append(
                {
                    **sample,
                    **_measurements(answer, self.api.price),
                    "sample_length": length,
                    "attempts": entry["attempts"],
                }
            )
        return (
            pl.DataFrame(predictions, schema=_PREDICTIONS),
            pl.DataFrame(measurements, schema=_MEASUREMENTS),
        )


def _error_of(state: RetryCallState) -> RetryableError:
    """The error of a failed attempt."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, RetryableError)
    return error


def _wait_seconds(state: RetryCallState) -> float:
    """Seconds to the next attempt: Retry-After, or exponential backoff; both with jitter."""
    seconds = _error_of(state).wait_seconds
    if seconds is not None:
        return seconds + random.uniform(0, FIRST_WAIT_SECONDS)
    backoff = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)
    return backoff(state) * random.uniform(0.5, 1)


def _measurements(answer: dict[str, Any], price: Price | None) -> dict[str, Any]:
    if not answer:
        return {}
    return {
        "prefill_seconds": answer["first_token_seconds"],
        "decode_seconds": answer["seconds"] - answer["first_token_seconds"],
        "prompt_tokens": answer["prompt_tokens"],
        "cached_tokens": answer["cached_tokens"],
        "price_dollars": price_dollars(
            price, answer["prompt_tokens"], answer["new_tokens"], answer["cached_tokens"]
        ),
    }


def price_dollars(
    price: Price | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    cached_tokens: int | None,
) -> float | None:
    """Price of one answer, or None where the price or the token counts are unknown."""
    if price is None or prompt_tokens is None or new_tokens is None:
        return None
    return price.dollars(prompt_tokens, new_tokens, cached_tokens or 0)
