"""One evaluation job: open a model and answer samples, in this process or in several."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import distributed
from transformers import PreTrainedConfig

from needlework.config.attention.registry import AnyAttention, attention_class
from needlework.config.base import Strict
from needlework.config.models.thought import ThoughtFormat
from needlework.config.opening import ModelSpec, Opening
from needlework.config.rope import positions_of
from needlework.evaluation.early_stopping import EarlyStop
from needlework.evaluation.generation.answer_checkpoint import AnswerCheckpoint, Entry
from needlework.evaluation.generation.generate import generate_answers
from needlework.models.checkpoint import open_config, open_model
from needlework.models.convert import convert
from needlework.models.loading import out_of_memory
from needlework.runtime.memory import is_out_of_memory, limit_memory
from needlework.runtime.processes import error_file, exit_with_parent, log_to_parent, run_processes
from needlework.tables.skipped import LENGTH_REFUSED, OUT_OF_MEMORY

Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]
"""Predictions, measurements and densities, as returned by `generate_answers`."""
_TABLE_NAMES = ("predictions", "measurements", "densities")


class EvaluationJob(Strict):
    """A system and how to open its model."""

    system: str
    model: ModelSpec
    allow_extrapolation: bool = False
    attention: dict[str, Any] | None = None
    thinking_tokens: int = 0
    thought_format: ThoughtFormat | None = None

    @classmethod
    def of(cls, system: str, params: Any) -> "EvaluationJob":
        """Build the job from the params of the rule that evaluates `system`."""
        names = [name for name in cls.model_fields if name != "system"]
        return cls(system=system, **{name: getattr(params, name) for name in names})


def answer_samples(
    job: EvaluationJob,
    samples: str | Path,
    rows: slice,
    threads: int,
    early_stopping: bool = False,
    journal: tuple[str | Path | None, str] = (None, ""),
) -> Tables:
    """Answer some rows of the table `samples`; return one row per sample, in their order.

    A model that is divided over processes is run by child processes. The tables are those of one
    process, except that memory is the sum over processes and time that of the slowest.

    Args:
        job: system and model.
        samples: Parquet file of samples.
        rows: rows of it to answer.
        threads: CPU threads of all processes together.
        early_stopping: raise EarlyStop where memory or positions run out; allocations are limited
            to the machine's free memory.
        journal: file that keeps each answer as soon as it is made, and a hash of what answers
            depend on. Samples with an entry are not answered again.

    Raises:
        ValueError: an error that the user can fix, in any of the processes.
        RuntimeError: a process was killed from outside.
        EarlyStop: with `early_stopping`.
    """
    count = job.model.opening.processes
    if count == 1:
        checkpoint = AnswerCheckpoint(*journal)
        return _answer_samples(job, samples, rows, threads, early_stopping, checkpoint)
    with TemporaryDirectory() as folder:
        arguments = {
            "job": job.model_dump(mode="json"),
            "samples": str(samples),
            "rows": [rows.start, rows.stop],
            "threads": max(1, threads // count),
            "early_stopping": early_stopping,
            "journal": [journal[0] and str(journal[0]), journal[1]],
        }
        try:
            run_processes(__name__, arguments, folder, count)
        except ValueError:
            if (stop_file := _early_stop_file(folder)).is_file():
                raise EarlyStop(*json.loads(stop_file.read_text())) from None
            raise
        predictions, measurements, densities = (
            pl.read_parquet(Path(folder) / f"{name}.parquet") for name in _TABLE_NAMES
        )
        return predictions, measurements, densities


def _early_stop_file(folder: str | Path) -> Path:
    """File in which a process records reason and detail of an EarlyStop."""
    return Path(folder) / "stopped.json"


def _answer_samples(
    job: EvaluationJob,
    samples: str | Path,
    rows: slice,
    threads: int,
    early_stopping: bool,
    checkpoint: AnswerCheckpoint,
) -> Tables:
    """Answer samples in this process."""
    torch.set_num_threads(threads)
    opening, table = job.model.opening, pl.read_parquet(samples)[rows]
    length: int = table["length"][0]
    longest: int = max((table["tokens"] + table["max_new_tokens"]).to_list())
    if not job.allow_extrapolation:
        _require_positions(job.model, longest, length if early_stopping else None)
    if early_stopping:
        limit_memory(opening.processes)
    model = None
    try:
        model, tokenizer = open_model(job.model)
        attention = TypeAdapter(AnyAttention | None).validate_python(job.attention)
        if attention is not None and attention.converts_model:
            model, attention = convert(model, attention), None
        return generate_answers(
            model,
            tokenizer,
            table,
            system=job.system,
            attention=attention,
            thinking_tokens=job.thinking_tokens,
            thought_format=job.thought_format,
            cache=opening.cache,
            prefill_chunk_tokens=opening.prefill_chunk_tokens,
            checkpoint=checkpoint,
        )
    except (RuntimeError, MemoryError) as error:
        if "meta tensor" in str(error):
            raise ValueError(
                f"{job.model.path}: models of this family cannot compute with their first layers "
                "on disk; raise max_memory"
            ) from None
        if not is_out_of_memory(error):
            raise
        activity, tokens = ("opening", None) if model is None else ("answering", longest)
        if early_stopping:
            message = str(error).partition("\n")[0] or type(error).__name__
            raise EarlyStop(OUT_OF_MEMORY, f"{activity} at {length:,}: {message}") from None
        raise ValueError(
            f"{job.model.path}: out of memory while {activity}; {out_of_memory(opening, tokens)}"
        ) from None


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
    journal_file, key = arguments["journal"]
    try:
        tables = _answer_samples(
            job,
            arguments["samples"],
            slice(*arguments["rows"]),
            arguments["threads"],
            arguments["early_stopping"],
            AnswerCheckpoint(journal_file, key, is_main, merge),
        )
    except EarlyStop as stop:
        _early_stop_file(path.parent).write_text(json.dumps([stop.reason, stop.detail]))
        error_file(path).write_text(stop.detail)
        sys.exit(1)
    except (ValueError, OSError) as error:
        error_file(path).write_text(str(error))
        sys.exit(1)
    if is_main:
        for name, table in zip(_TABLE_NAMES, tables, strict=True):
            table.write_parquet(path.with_name(f"{name}.parquet"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
