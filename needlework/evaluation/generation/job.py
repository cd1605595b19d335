"""One evaluation job: all samples that one system answers, from the store or by generation."""

import json
import sys
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from needlework.config.base import Strict
from needlework.config.models.thought import ThoughtFormat
from needlework.config.opening import ModelSpec
from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import Cell
from needlework.evaluation.early_stopping import StopRule, answer_by_length
from needlework.evaluation.generation.tables import AnswerTables, answer_tables
from needlework.tables.skipped import SkippedCell

ANSWERED = ["task", "length", "sample", "prompt", "control_spans", "tokens", "max_new_tokens"]
"""Columns of samples that answering reads."""
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA, AMD, and GPUs under Windows' Linux."""
_PACKAGES = ("torch", "transformers", "tokenizers")


class EvaluationJob(Strict):
    """A system and how to open its model."""

    system: str
    model: ModelSpec
    allow_extrapolation: bool = False
    attention: dict[str, Any] | None = None
    thinking_tokens: int = 0
    thought_format: ThoughtFormat | None = None
    stop_rule: StopRule | None = None
    """With early stopping: when low accuracy stops a task. Memory and positions stop it as well."""

    @classmethod
    def of(cls, system: str, params: Any) -> "EvaluationJob":
        """Build the job from the params of the rule that evaluates `system`."""
        names = [name for name in cls.model_fields if name != "system"]
        return cls(system=system, **{name: getattr(params, name) for name in names})

    def answer_by_length(
        self,
        cells: Sequence[Cell],
        answer: Callable[[Cell], pl.DataFrame],
        skipped: Sequence[SkippedCell] = (),
    ) -> list[SkippedCell]:
        """Answer cells with early stopping as this job has it; see `answer_by_length`."""
        return answer_by_length(
            cells,
            answer,
            system=self.system,
            stop_rule=self.stop_rule,
            thought=self.thought_format,
            skipped=skipped,
        )

    def facts(self, weights: dict[str, str], code: str, threads: int) -> dict[str, Any]:
        """Everything that answers of the system depend on, apart from prompts, as JSON values.

        Names of the system, its model and its files are not among them.

        Args:
            weights: sha256 by name of every file of the model and of the system's gates. A model
                on the hub has none: its commit stands for them.
            code: hash of the code that generates answers.
            threads: CPU threads.
        """
        dumped = self.model_dump(mode="json", exclude={"system", "stop_rule"})
        path, revision = dumped["model"].pop("path"), dumped["model"].pop("revision")
        if not weights:
            dumped["hub"] = [path, _commit(path, revision)]
        dumped["attention"] = {k: v for k, v in (self.attention or {}).items() if k != "gates"}
        return {
            **dumped,
            "weights": weights,
            "code": code,
            "packages": {name: version(name) for name in _PACKAGES},
            "device": _device_kind(),
            "threads": threads,
        }


def _device_kind() -> str:
    """The GPU that torch uses, or `cpu`. Imports torch only where there may be a GPU."""
    if sys.platform == "darwin" or any(Path(file).exists() for file in _GPU_FILES):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return "cpu"


def _commit(path: str, revision: str | None) -> str:
    """The commit of a model on the hub; a new value each time where it is not known yet."""
    from needlework.sources import hub

    return hub.commit(path, revision) or uuid.uuid4().hex


def answer_cells(
    job: EvaluationJob, cells: Sequence[Cell], store: AnswerStore, threads: int = 1
) -> tuple[AnswerTables, list[SkippedCell]]:
    """Answer the samples that the store lacks; return tables of all, in the order of `cells`.

    Lengths are answered in ascending order by a model that is opened once, if at all. Each answer
    is added to the store as soon as it is made. A model that is divided over processes is run by
    child processes; the tables are those of one process, except that memory is the sum over
    processes and time that of the slowest.

    Returns:
        The tables, see `generate_answers`, and the cells that early stopping skipped.

    Raises:
        ValueError: an error that the user can fix, in any of the processes.
        RuntimeError: a process was killed from outside.
    """
    if all(store.get(row) is not None for cell in cells for row in cell.read(ANSWERED).to_dicts()):
        skipped = job.answer_by_length(
            cells, lambda cell: tables_of(job, [cell], store).predictions
        )
    else:
        # Imports torch, which takes seconds.
        from needlework.evaluation.generation import answers

        skipped = answers.fill_store(job, cells, store, threads)
    omitted = {(cell.task, cell.length) for cell in skipped}
    kept = [cell for cell in cells if (cell.task, cell.length) not in omitted]
    return tables_of(job, kept, store), skipped


def tables_of(job: EvaluationJob, cells: Sequence[Cell], store: AnswerStore) -> AnswerTables:
    """Tables of the answers that the store holds to every sample of `cells`."""
    rows = (row for cell in cells for row in cell.read(ANSWERED).iter_rows(named=True))
    entries = ((row, store.get(row)) for row in rows)
    return answer_tables(job.system, ((row, entry) for row, entry in entries if entry is not None))


def write_skipped(path: Path, skipped: Sequence[SkippedCell]) -> None:
    """Write skipped cells as JSON."""
    path.write_text(json.dumps([vars(cell) for cell in skipped]))


def read_skipped(path: Path) -> list[SkippedCell]:
    """Read what `write_skipped` wrote."""
    return [SkippedCell(**cell) for cell in json.loads(path.read_text())]
