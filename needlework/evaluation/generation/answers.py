"""Answer the samples that the store lacks: open a model once, in this process or in several."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import distributed
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from needlework.config.attention.base import Attention
from needlework.config.attention.registry import AnyAttention, attention_class
from needlework.config.opening import ModelSpec, Opening
from needlework.config.rope import positions_of
from needlework.evaluation.answer_store import AnswerStore, Entry
from needlework.evaluation.cell import Cell
from needlework.evaluation.early_stopping import EarlyStop
from needlework.evaluation.generation.generate import generate_answers
from needlework.evaluation.generation.job import (
    ANSWERED,
    EvaluationJob,
    read_skipped,
    tables_of,
    write_skipped,
)
from needlework.models.checkpoint import open_config, open_model
from needlework.models.convert import convert
from needlework.models.loading import out_of_memory
from needlework.runtime.memory import is_out_of_memory, limit_memory
from needlework.runtime.processes import error_file, exit_with_parent, log_to_parent, run_processes
from needlework.tables.skipped import LENGTH_REFUSED, OUT_OF_MEMORY, SkippedCell

_SKIPPED, _FAILED = "skipped.json", "failed.json"
"""Files of child processes: the cells skipped by all, and by the one that ran out of memory."""


def fill_store(
    job: EvaluationJob, cells: Sequence[Cell], store: AnswerStore, threads: int
) -> list[SkippedCell]:
    """Answer samples that `store` lacks; see `job.answer_cells`.

    Returns:
        The cells that early stopping skipped.
    """
    if job.model.opening.processes == 1:
        return job.answer_by_length(cells, _Answerer(job, store, threads).answer)
    skipped: list[SkippedCell] = []
    is_done = False
    while not is_done:
        is_done = _run_processes(job, cells, store, threads, skipped)
    store.load()
    return skipped


def _run_processes(
    job: EvaluationJob,
    cells: Sequence[Cell],
    store: AnswerStore,
    threads: int,
    skipped: list[SkippedCell],
) -> bool:
    """Run the job in child processes, and extend `skipped` by the cells that they skip.

    Returns:
        Whether they are done; False if one ran out of memory.
    """
    count = job.model.opening.processes
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_skipped(folder / _SKIPPED, skipped)
        arguments = {
            "job": job.model_dump(mode="json"),
            "cells": [asdict(cell) for cell in cells],
            "threads": max(1, threads // count),
            "store": store.arguments(),
        }
        try:
            run_processes(__name__, arguments, folder, count)
        except ValueError:
            if not (failed := folder / _FAILED).is_file():
                raise
            skipped += read_skipped(failed)
            return False
        skipped[:] = read_skipped(folder / _SKIPPED)
        return True


@dataclass
class _Answerer:
    """Answers cells; opens the model for the first that needs it."""

    job: EvaluationJob
    store: AnswerStore
    threads: int
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerFast | None = None
    attention: Attention | None = None

    def answer(self, cell: Cell) -> pl.DataFrame:
        """Answer the samples of a cell that the store lacks; return the predictions of all.

        Raises:
            ValueError: an error that the user can fix.
            EarlyStop: with early stopping, where memory or positions run out.
        """
        job, samples = self.job, cell.read(ANSWERED)
        missing = samples.filter([self.store.get(row) is None for row in samples.to_dicts()])
        if len(missing):
            longest = max((samples["tokens"] + samples["max_new_tokens"]).to_list())
            stops_early = job.stop_rule is not None
            if not job.allow_extrapolation:
                _require_positions(job.model, longest, cell.length if stops_early else None)
            try:
                self._generate(missing)
            except (RuntimeError, MemoryError) as error:
                raise self._explained(error, cell, longest) from None
        return tables_of(job, [cell], self.store).predictions

    def _generate(self, samples: pl.DataFrame) -> None:
        job, opening = self.job, self.job.model.opening
        if self.model is None:
            torch.set_num_threads(self.threads)
            if job.stop_rule is not None:
                limit_memory(opening.processes)
            model, self.tokenizer = open_model(job.model)
            attention = TypeAdapter(AnyAttention | None).validate_python(job.attention)
            if attention is not None and attention.converts_model:
                model, attention = convert(model, attention), None
            self.model, self.attention = model, attention
        assert self.tokenizer is not None
        generate_answers(
            self.model,
            self.tokenizer,
            samples,
            system=job.system,
            attention=self.attention,
            thinking_tokens=job.thinking_tokens,
            thought_format=job.thought_format,
            cache=opening.cache,
            prefill_chunk_tokens=opening.prefill_chunk_tokens,
            store=self.store,
        )

    def _explained(self, error: Exception, cell: Cell, longest: int) -> Exception:
        """What to raise for an error of torch: memory ran out, or a fault."""
        path, opening = self.job.model.path, self.job.model.opening
        if "meta tensor" in str(error):
            return ValueError(
                f"{path}: models of this family cannot compute with their first layers on disk; "
                "raise max_memory"
            )
        if not is_out_of_memory(error):
            return error
        activity, tokens = ("opening", None) if self.model is None else ("answering", longest)
        if self.job.stop_rule is not None:
            message = str(error).partition("\n")[0] or type(error).__name__
            return EarlyStop(OUT_OF_MEMORY, f"{activity} at {cell.length:,}: {message}")
        return ValueError(
            f"{path}: out of memory while {activity}; {out_of_memory(opening, tokens)}"
        )


def _require_positions(spec: ModelSpec, tokens: int, stop_at: int | None) -> None:
    """Fail if the model has fewer positions than `tokens`.

    Args:
        stop_at: with early stopping, the length to report; None: raise ValueError instead.
    """
    limit = _max_positions(open_config(spec))
    if limit is None or tokens <= limit:
        return
    if stop_at is not None:
        raise EarlyStop(
            LENGTH_REFUSED,
            f"{tokens:,} tokens at {stop_at:,}, beyond the model's {limit:,} positions",
        )
    raise ValueError(
        f"{spec.path}: prompt and answer of {tokens} tokens exceed its {limit} positions; write "
        "smaller lengths, `early_stopping: true`, or `allow_extrapolation: true` next to the "
        "model's path"
    )


def _max_positions(config: PreTrainedConfig) -> int | None:
    """Positions that a model is made for, or None if unlimited."""
    own = getattr(config, "needlework_attention", None)
    if own is not None and not attention_class(own).limits_positions:
        return None
    return positions_of(config.get_text_config(decoder=True).to_dict())


def _merge(mine: Entry, opening: Opening) -> Entry:
    """Merge the entries of all processes: equal answers, total memory."""
    entries: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(entries, mine)
    cache_bytes = [entry["answer"].pop("cache_bytes") for entry in entries]
    if any(entry["answer"] != entries[0]["answer"] for entry in entries):
        raise RuntimeError("the processes of a model gave different answers")
    # Each process holds the whole cache, unless heads are divided.
    mine["answer"]["cache_bytes"] = sum(cache_bytes) if opening.tp > 1 else cache_bytes[0]
    peaks = [entry["measured"]["peak_memory_bytes"] for entry in entries]
    mine["measured"]["peak_memory_bytes"] = sum(peaks)
    return mine


def main() -> None:
    """Run one of the processes of a job."""
    exit_with_parent()
    path = Path(sys.argv[1])
    arguments = json.loads(path.read_text())
    is_main = os.environ["RANK"] == "0"
    log_to_parent(is_main)
    job = EvaluationJob.model_validate(arguments["job"])
    merge = partial(_merge, opening=job.model.opening)
    store = AnswerStore(**arguments["store"], is_main=is_main, merge=merge)
    answerer = _Answerer(job, store, arguments["threads"])

    def answer(cell: Cell) -> pl.DataFrame:
        try:
            return answerer.answer(cell)
        except EarlyStop as stop:
            if stop.reason != OUT_OF_MEMORY:
                raise  # in all processes alike
            failed = SkippedCell(job.system, cell.task, cell.length, stop.reason, stop.detail)
            write_skipped(path.with_name(_FAILED), [failed])
            raise ValueError(stop.detail) from None

    try:
        cells = [Cell(**cell) for cell in arguments["cells"]]
        skipped = job.answer_by_length(cells, answer, read_skipped(path.with_name(_SKIPPED)))
    except (ValueError, OSError) as error:
        error_file(path).write_text(str(error))
        sys.exit(1)
    if is_main:
        write_skipped(path.with_name(_SKIPPED), skipped)
    # Opening the model starts it.
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
