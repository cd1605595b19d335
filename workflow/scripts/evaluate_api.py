"""Answers of a model behind an API to one task at one length."""

import logging
from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models.api import Api
from needlework.evaluation.answer_journal import exclusive_lock, journal_path
from needlework.evaluation.api.answers import empty_tables, is_answered, request_answers
from needlework.evaluation.early_stopping import EarlyStop, write_unless_stopped
from needlework.models.api.key import api_key
from needlework.models.api.overflow import is_too_long
from needlework.pipeline.stage import stage
from needlework.tables.skipped import ALL_REFUSED, LENGTH_REFUSED

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def answers() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Request predictions and measurements; stop early if the API refuses every prompt."""
    api = TypeAdapter(Api).validate_python(s.params.api)
    samples = pl.read_parquet(s.input.samples)
    journal = journal_path(s.output_paths["predictions"])
    key = None if is_answered(api, samples, journal) else api_key(api.key_env)
    # Rate limits belong to the API, not to a job: one cell at a time.
    with exclusive_lock(s.params.lock):
        predictions, measurements = request_answers(
            api, samples, system=s.wildcards.system, key=key, journal=journal
        )
    if s.params.early_stopping is not None and (predictions["status"] == "refused").all():
        messages, length = predictions["reason"], int(s.wildcards.length)
        reason = LENGTH_REFUSED if all(map(is_too_long, messages)) else ALL_REFUSED
        raise EarlyStop(reason, f"at {length:,}: {messages[0]}")
    return predictions, measurements


with stage(snakemake) as s:
    # The HTTP libraries log addresses and headers.
    for name in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    write_unless_stopped(
        answers,
        [s.output.predictions, s.output.measurements],
        empty_tables(),
        cell=(s.wildcards.system, s.wildcards.task, int(s.wildcards.length)),
        early_stopping=s.params.early_stopping,
        shorter_predictions=s.input.shorter_predictions,
        shorter_scores=s.input.shorter_scores,
    )
