"""The answers of one job: a model opened, put to samples, in this process or in several."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import distributed
from transformers import PreTrainedConfig

from needlework.config.attention import AnyAttention
from needlework.config.opening import Opening
from needlework.evaluation.early_stopping import EarlyStop
from needlework.evaluation.generation.answer_checkpoint import AnswerCheckpoint, Entry
from needlework.evaluation.generation.generate import generate_answers
from needlework.models.checkpoint import open_config, open_model
from needlework.models.convert import convert
from needlework.models.loading import out_of_memory
from needlework.runtime.memory import is_out_of_memory, limit_memory
from needlework.runtime.processes import error_file, exit_with_parent, log_to_parent, run_processes
from needlework.tables.skipped import LENGTH, MEMORY

Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]
"""Predictions, measurements and densities, as `generate_answers` returns them."""
_NAMES = ("predictions", "measurements", "densities")


@dataclass(frozen=True)
class EvaluationJob:
    """A system and how it is opened; what JSON can hold."""

    system: str
    model: str
    dtype: str
    revision: str | None
    allow_pickle: bool
    opening: dict[str, Any]
    allow_extrapolation: bool
    attention: dict[str, Any] | None
    thinking_tokens: int

    @classmethod
    def of(cls, system: str, params: Any) -> "EvaluationJob":
        """From the params of a rule that evaluates `system`."""
        names = [name for name in cls.__dataclass_fields__ if name != "system"]
        return cls(system, **{name: getattr(params, name) for name in names})


def answers(
    asked: EvaluationJob,
    samples: str | Path,
    rows: slice,
    threads: int,
    stops_early: bool = False,
    journal: tuple[str | Path | None, str] = (None, ""),
) -> Tables:
    """Answers to some rows of the table `samples`, in the samples' order.

    Where the model is shared out over processes these are started, and end with this one; the
    tables are as one process would make them, the memory is that of all, the time the longest.

    Args:
        stops_early: of an early_stopping, whose write_unless_stopped stops where memory or positions run out; the machine's
            free memory is then the limit.
        journal: where each sample is put as soon as it is answered, and a hash of what answers
            follow from: those that are there already are not answered again.

    Raises:
        ValueError: what the user has to mend, from whichever process.
        RuntimeError: a process was ended from outside.
        EarlyStop: where it `stops_early`.
    """
    count = Opening(**asked.opening).processes
    if count == 1:
        return _answers(asked, samples, rows, threads, stops_early, AnswerCheckpoint(*journal))
    with TemporaryDirectory() as folder:
        job = {
            "asked": asdict(asked),
            "samples": str(samples),
            "rows": [rows.start, rows.stop],
            "threads": max(1, threads // count),
            "stops_early": stops_early,
            "journal": [journal[0] and str(journal[0]), journal[1]],
        }
        try:
            run_processes(__name__, job, folder, count)
        except ValueError:
            if (stopped := _stopped_file(folder)).is_file():
                raise EarlyStop(*json.loads(stopped.read_text())) from None
            raise
        return tuple(pl.read_parquet(Path(folder) / f"{name}.parquet") for name in _NAMES)


def _stopped_file(folder: str | Path) -> Path:
    """Where a process leaves why it stopped: reason and detail."""
    return Path(folder) / "stopped.json"


def _answers(
    asked: EvaluationJob,
    samples: str | Path,
    rows: slice,
    threads: int,
    stops_early: bool,
    finished: AnswerCheckpoint,
) -> Tables:
    torch.set_num_threads(threads)
    opening, table = Opening(**asked.opening), pl.read_parquet(samples)[rows]
    length, longest = table["length"][0], (table["tokens"] + table["max_new_tokens"]).max()
    if not asked.allow_extrapolation:
        _require_positions(asked, opening, longest, length if stops_early else None)
    if stops_early:
        limit_memory(opening.processes)
    model = None
    try:
        model, tokenizer = open_model(
            asked.model,
            dtype=asked.dtype,
            revision=asked.revision,
            allow_pickle=asked.allow_pickle,
            opening=opening,
        )
        attention = TypeAdapter(AnyAttention | None).validate_python(asked.attention)
        if attention is not None and attention.converts_model:
            model, attention = convert(model, attention), None
        return generate_answers(
            model,
            tokenizer,
            table,
            system=asked.system,
            attention=attention,
            thinking_tokens=asked.thinking_tokens,
            cache=opening.cache,
            prefill_chunk_tokens=opening.prefill_chunk_tokens,
            finished=finished,
        )
    except (RuntimeError, MemoryError) as error:
        if "meta tensor" in str(error):
            raise ValueError(
                f"{asked.model}: models of this family do not compute with their first layers on a "
                "disk; write more max_memory"
            ) from None
        if not is_out_of_memory(error):
            raise
        doing, most = ("opening", None) if model is None else ("answering", longest)
        if stops_early:
            told = str(error).partition("\n")[0] or type(error).__name__
            raise EarlyStop(MEMORY, f"{doing} at {length:,}: {told}") from None
        raise ValueError(
            f"{asked.model}: out of memory in {doing}; {out_of_memory(opening, most)}"
        ) from None


def _require_positions(
    asked: EvaluationJob, opening: Opening, tokens: int, rung: int | None
) -> None:
    """Whether the model takes so many tokens; `rung` is the length, with early_stopping."""
    limit = _positions(open_config(asked.model, asked.revision, opening.trust_remote_code))
    if limit is None or tokens <= limit:
        return
    if rung is not None:
        raise EarlyStop(
            LENGTH, f"{tokens:,} tokens at {rung:,}, beyond the model's {limit:,} positions"
        )
    raise ValueError(
        f"{asked.model}: prompt and answer of {tokens} tokens are beyond its {limit} positions; "
        "write smaller lengths, `allow_extrapolation: true` beside the model's path, or `early_stopping: true`"
    )


def _positions(config: PreTrainedConfig) -> int | None:
    """Positions that a model is made for; None: any number."""
    # Infini-attention counts them within a segment, so none is ever too far.
    if getattr(config, "needlework_attention", None) == "infini":
        return None
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def _together(mine: Entry, opening: Opening) -> Entry:
    """One sample as the processes of a model found it: with what all of them hold and use."""
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    held = [entry["answer"].pop("cache_bytes") for entry in everyone]
    if any(entry["answer"] != everyone[0]["answer"] for entry in everyone):
        raise RuntimeError("the processes of a model gave different answers")
    # Whole in each process, but for heads that are shared out.
    mine["answer"]["cache_bytes"] = sum(held) if opening.tp > 1 else held[0]
    peaks = [entry["measured"]["peak_memory_bytes"] for entry in everyone]
    mine["measured"]["peak_memory_bytes"] = sum(peaks)
    return mine


def main() -> None:
    """One of the processes of a job."""
    exit_with_parent()
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    is_main = os.environ["RANK"] == "0"
    log_to_parent(is_main)
    asked = EvaluationJob(**job["asked"])
    together = partial(_together, opening=Opening(**asked.opening))
    try:
        tables = _answers(
            asked,
            job["samples"],
            slice(*job["rows"]),
            job["threads"],
            job["stops_early"],
            AnswerCheckpoint(*job["journal"], is_main, together),
        )
    except EarlyStop as why:
        _stopped_file(path.parent).write_text(json.dumps([why.reason, why.detail]))
        error_file(path).write_text(why.detail)
        sys.exit(1)
    except (ValueError, OSError) as error:
        error_file(path).write_text(str(error))
        sys.exit(1)
    if is_main:
        for name, table in zip(_NAMES, tables, strict=True):
            table.write_parquet(path.with_name(f"{name}.parquet"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
