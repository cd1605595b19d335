"""Answers of a model behind an API to all samples."""

import logging
from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.models.api import Api
from needlework.evaluation.answer_journal import exclusive_lock, journal_path
from needlework.evaluation.api.answers import empty_tables, is_answered, request_answers
from needlework.evaluation.cell import Cell
from needlework.evaluation.early_stopping import EarlyStop, StopRule, answer_by_length
from needlework.models.api.key import api_key
from needlework.models.api.overflow import is_too_long
from needlework.pipeline.stage import stage
from needlework.tables import skipped
from needlework.tables.skipped import ALL_REFUSED, LENGTH_REFUSED

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def answer(cell: Cell) -> pl.DataFrame:
    """Request the answers to a cell; stop early if the API refuses every prompt."""
    samples = cell.read()
    key = None if is_answered(api, samples, journal) else api_key(api.key_env)
    predictions, measurements = request_answers(
        api, samples, system=s.wildcards.system, key=key, journal=journal
    )
    if stop_rule is not None and (predictions["status"] == "refused").all():
        messages = predictions["reason"]
        reason = LENGTH_REFUSED if all(map(is_too_long, messages)) else ALL_REFUSED
        raise EarlyStop(reason, f"at {cell.length:,}: {messages[0]}")
    tables[cell] = predictions, measurements
    return predictions


with stage(snakemake) as s:
    # The HTTP libraries log addresses and headers.
    for name in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    api = TypeAdapter(Api).validate_python(s.params.api)
    stop_rule = TypeAdapter(StopRule | None).validate_python(s.params.stop_rule)
    journal = journal_path(s.output_paths["predictions"])
    tables: dict[Cell, tuple[pl.DataFrame, pl.DataFrame]] = {}
    cells = [Cell(str(path)) for path in s.input.samples]
    # Rate limits belong to the API, not to a job: one system at a time.
    with exclusive_lock(s.params.lock):
        skipped_cells = answer_by_length(
            cells, answer, system=s.wildcards.system, stop_rule=stop_rule
        )
    answered = [tables[cell] for cell in cells if cell in tables]
    for number, name in enumerate(("predictions", "measurements")):
        table = pl.concat([empty_tables()[number], *(parts[number] for parts in answered)])
        skipped.write(table, getattr(s.output, name), skipped_cells)
