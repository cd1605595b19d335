"""Answers of a model behind an API to one task at one length."""

import logging
from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models import Api
from needlework.evaluation.answer_journal import alone, journal_of
from needlework.evaluation.api.answers import ask, is_answered, unasked
from needlework.evaluation.early_stopping import Stopped, climb
from needlework.models.api.client import is_too_long
from needlework.models.api.key import api_key
from needlework.pipeline.stage import stage
from needlework.tables.skipped import LENGTH, REFUSED

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def answers() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions and measurements; with early_stopping one that is refused whole stops the climb."""
    api = TypeAdapter(Api).validate_python(s.params.api)
    samples, journal = pl.read_parquet(s.input.samples), journal_of(s.named["predictions"])
    key = None if is_answered(api, samples, journal) else api_key(api.key_env)
    # Limits are the API's, not a job's: one cell after the other.
    with alone(s.params.lock):
        predictions, measurements = ask(
            api, samples, system=s.wildcards.system, key=key, journal=journal
        )
    if s.params.early_stopping is not None and (predictions["status"] == "refused").all():
        told, length = predictions["reason"], int(s.wildcards.length)
        why = LENGTH if all(map(is_too_long, told)) else REFUSED
        raise Stopped(why, f"at {length:,}: {told[0]}")
    return predictions, measurements


with stage(snakemake) as s:
    # Transport loggers tell addresses and headers.
    for name in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    climb(
        answers,
        [s.output.predictions, s.output.measurements],
        unasked(),
        cell=(s.wildcards.system, s.wildcards.task, int(s.wildcards.length)),
        early_stopping=s.params.early_stopping,
        before=s.input.before,
        scores_before=s.input.scores_before,
    )
