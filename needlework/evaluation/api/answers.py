"""Answers of a model behind an API: many at a time, each asked again until it is there."""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from needlework.config.models import Api, Price
from needlework.evaluation.answer_journal import AnswerJournal
from needlework.evaluation.answer_tables import MEASUREMENTS, PREDICTIONS
from needlework.evaluation.api.rate_limit import RateLimiter
from needlework.models.api.client import Answer, Endpoint, Failed, Refused, Stop, TryAgain
from needlework.runtime.progress import track

_log = logging.getLogger(__name__)

_PREDICTIONS = {**PREDICTIONS, "status": pl.String, "reason": pl.String}
_MEASUREMENTS = {
    **MEASUREMENTS,
    "prompt_tokens": pl.Int64,
    "cached_tokens": pl.Int64,
    "price_dollars": pl.Float64,
    "attempts": pl.Int64,
}
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
_FAR_FEWER = 0.5


def ask(
    api: Api, samples: pl.DataFrame, *, system: str, key: str | None, journal: str | Path
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions and measurements, one row a sample in the samples' order.

    Each answer is put into the journal as soon as it is there, and one that the journal has is not
    asked for again. So is what the API refuses; what failed is asked again by the next run.

    status is ok, refused (the API will not answer this prompt: too long, or filtered) or error (it
    was asked as often as `api.retries` says, or cannot be answered); where it is not ok, reason
    says why in one line and the prediction is empty. new_tokens are those that the API counts,
    thoughts among them. Densities, cache_bytes and memory are null. prefill_seconds are those to
    the first text, the network's and the waiting line's among them; decode_seconds those from there
    to the end; both of the try that was answered. prompt_tokens and cached_tokens are the API's
    count, price_dollars that of the try that was answered; null where they are not known.

    Raises:
        ValueError: what is wrong holds for every sample: the key, the model, the account, a server
            that is not there. What is answered by then is in the journal.
    """
    return asyncio.run(_Asking(api, samples, system, key, AnswerJournal(journal)).run())


def is_answered(api: Api, samples: pl.DataFrame, journal: str | Path) -> bool:
    """Whether the journal has every answer, so that `ask` makes no request."""
    endpoint, entries = Endpoint(api, None), AnswerJournal(journal).read()
    requests = map(endpoint.request, samples.iter_rows(named=True))
    return all(endpoint.key_of(request) in entries for request in requests)


def unasked() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of `ask` without a row."""
    return pl.DataFrame(schema=_PREDICTIONS), pl.DataFrame(schema=_MEASUREMENTS)


class _Asking:
    def __init__(
        self, api: Api, samples: pl.DataFrame, system: str, key: str | None, journal: AnswerJournal
    ):
        self.api, self.samples, self.system, self.journal = api, samples, system, journal
        self.endpoint = Endpoint(api, key)
        self.pace = RateLimiter(api.requests_per_minute, api.tokens_per_minute)
        self.entries = journal.load()
        self.rows: dict[int, dict[str, Any]] = {}
        self.stop: str | None = None
        self.stopped = asyncio.Event()
        self.writing = asyncio.Lock()
        self.reached, self.answered = False, bool(self.entries)

    async def run(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        name = f"{self.system} {self.samples['task'][0]} {self.samples['length'][0]}"
        async with self.endpoint:
            if self.api.test_mode and not is_answered(self.api, self.samples, self.journal.path):
                await self._probe()
            with track(description=name, total=len(self.samples), unit="sample") as progress:
                waiting = enumerate(self.samples.iter_rows(named=True))
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(self.api.concurrency):
                            group.create_task(self._work(waiting, progress))
                except* OSError as found:
                    self._stop(f"{self.journal.path}: {found.exceptions[0]}")
        if self.stop is not None:
            raise ValueError(self.stop)
        self._report(name)
        return self._tables()

    async def _probe(self) -> None:
        """Ask the first sample's question without its context."""
        row = self.samples.row(0, named=True)
        question = row["prompt"].replace(row["context"], "", 1)
        found = await self._outcome(
            {**row, "context": "", "prompt": question, "sample": -1, "tokens": 0}
        )
        if self.stop is None and found["status"] == "error":
            self._stop(f"{self.api.api} does not answer a small sample: {found['reason']}")
        if self.stop is not None:
            raise ValueError(self.stop)

    async def _work(self, waiting: Iterator[tuple[int, dict[str, Any]]], progress: Any) -> None:
        for index, row in waiting:
            if self.stop is not None:
                return
            self.rows[index] = await self._outcome(row)
            progress.update()

    async def _outcome(self, row: dict[str, Any]) -> dict[str, Any]:
        """The entry of a sample: what the journal has, or what comes of asking."""
        request = self.endpoint.request(row)
        key = self.endpoint.key_of(request)
        if key in self.entries:
            return self.entries[key]
        attempts, answer, status, reason = await self._ask(request, row)
        entry = {"key": key, "sample": row["sample"], "status": status, "reason": reason}
        entry |= {"attempts": attempts, "answer": answer and asdict(answer)}
        if status != "error":
            # A slow disk must not hold up those whose time is measured.
            async with self.writing:
                await asyncio.to_thread(self.journal.add, entry)
        return entry

    async def _ask(
        self, request: dict[str, Any], row: dict[str, Any]
    ) -> tuple[int, Answer | None, str, str | None]:
        tokens = row["tokens"] + row["max_new_tokens"] + self.api.thinking_tokens
        attempts, reason = 0, ""
        while self.stop is None:
            while (wait := self.pace.wait_seconds) > 0 and self.stop is None:
                await self._sleep(wait)
            self.pace.start(tokens)
            attempts += 1
            try:
                answer = await self.endpoint.ask(request)
                self.reached = self.answered = True
                return attempts, answer, "ok", None
            except Refused as fault:
                return attempts, None, "refused", str(fault)
            except Failed as fault:
                return attempts, None, "error", str(fault)
            except Stop as fault:
                if self.answered and not fault.of_all:
                    return attempts, None, "refused", str(fault)
                self._stop(str(fault))
            except TryAgain as fault:
                reason = f"{fault} (tried {attempts} times)"
                self.reached |= fault.reached
                if attempts > self.api.retries:
                    if not self.reached:
                        self._stop(f"{self.api.api} cannot be reached: {reason}; is it running?")
                    break
                wait = self._wait_seconds(fault, attempts)
                _log.info("sample %s: %s; again in %.1f s", row["sample"], fault, wait)
                await self._sleep(wait)
        return attempts, None, "error", reason

    def _stop(self, reason: str) -> None:
        """Ask nothing more; what is under way is paid, so it is waited for."""
        self.stop = self.stop or reason
        self.stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond a stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)

    def _wait_seconds(self, fault: TryAgain, attempts: int) -> float:
        """How long to wait: as asked, or twice as long each time; never all at once."""
        asked = fault.wait_seconds
        if asked is None:
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempts - 1))
            return wait * random.uniform(0.5, 1)
        if asked > _LONGEST_PAUSE_SECONDS:
            self._stop(
                f"{self.api.api} asks to wait {asked:,.0f} s ({fault}); run again after that, what "
                "is answered is kept"
            )
        self.pace.pause(asked)
        return asked + random.uniform(0, FIRST_WAIT_SECONDS)

    def _report(self, name: str) -> None:
        for status in ("refused", "error"):
            found = [row for row in self.rows.values() if row["status"] == status]
            if found:
                _log.warning("%s: %d %s, such as: %s", name, len(found), status, found[0]["reason"])
        if self.api.tokenizer is not None:
            pairs = zip(self.samples["tokens"], self._ordered(), strict=True)
            fewer = [
                (counted, tokens)
                for tokens, row in pairs
                if row["answer"]
                and (counted := row["answer"]["prompt_tokens"]) is not None
                and counted < _FAR_FEWER * tokens
            ]
            if fewer:
                _log.warning(
                    "%s: the API counts %d tokens where the sample has %d (%d such); does it cut "
                    "what it reads?",
                    name,
                    *fewer[0],
                    len(fewer),
                )

    def _ordered(self) -> list[dict[str, Any]]:
        return [self.rows[index] for index in range(len(self.samples))]

    def _tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = self.samples.select("task", "length", "sample").rows(named=True)
        predictions, measurements = [], []
        for key, entry in zip(keys, self._ordered(), strict=True):
            named = {"system": self.system, **key}
            answer = entry["answer"] or {}
            predictions.append(
                {
                    **named,
                    "prediction": answer.get("text", ""),
                    "new_tokens": answer.get("new_tokens"),
                    "stop_reason": answer.get("stop_reason"),
                    "status": entry["status"],
                    "reason": entry["reason"],
                }
            )
            measurements.append(
                {**named, **_measured(answer, self.api.price), "attempts": entry["attempts"]}
            )
        return (
            pl.DataFrame(predictions, schema=_PREDICTIONS),
            pl.DataFrame(measurements, schema=_MEASUREMENTS),
        )


def _measured(answer: dict[str, Any], price: Price | None) -> dict[str, Any]:
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
    """What one answer costs; None where price or counts are not known."""
    if price is None or prompt_tokens is None or new_tokens is None:
        return None
    return price.dollars(prompt_tokens, new_tokens, cached_tokens or 0)
