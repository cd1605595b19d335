"""Answers of a model behind an API to one task at one length."""

import logging
from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models import Api
from needlework.evaluation.answer_journal import alone
from needlework.evaluation.ask import ask, unasked
from needlework.evaluation.ladder import Stopped, climb
from needlework.models.api_key import api_key
from needlework.not_run import LENGTH
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def answers() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions and measurements; on a ladder a length that is refused whole stops the climb."""
    # Limits are the API's, not a job's: one cell after the other.
    with alone(s.params.lock):
        predictions, measurements = ask(
            TypeAdapter(Api).validate_python(s.params.api),
            pl.read_parquet(s.input.samples),
            system=s.wildcards.system,
            key=key,
            journal=s.kept("journal").with_suffix(".jsonl"),
        )
    if s.params.ladder is not None and (predictions["status"] == "refused").all():
        length = int(s.wildcards.length)
        raise Stopped(LENGTH, f"at {length:,}: {predictions['reason'][0]}")
    return predictions, measurements


with stage(snakemake) as s:
    # Transport loggers tell addresses and headers.
    for name in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    key = api_key(s.params.api["key_variable"])
    climb(
        answers,
        [s.output.predictions, s.output.measurements],
        unasked(),
        cell=(s.wildcards.system, s.wildcards.task, int(s.wildcards.length)),
        ladder=s.params.ladder,
        before=s.input.before,
        scores_before=s.input.scores_before,
    )
