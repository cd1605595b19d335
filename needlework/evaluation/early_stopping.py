"""Early stopping: evaluate lengths in ascending order, and stop a system that fails at one."""

import importlib
from collections.abc import Callable, Iterable, Sequence

import polars as pl

from needlework.config.base import Strict
from needlework.config.models.thought import ThoughtFormat
from needlework.evaluation.cell import Cell
from needlework.tables.skipped import LOW_ACCURACY, SkippedCell


class EarlyStop(Exception):
    """Raised where a cell, and with it all greater lengths of its task, is skipped."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class StopRule(Strict):
    """When a system has failed at a task."""

    min_accuracy: float
    """Fraction of correct answers, 0-1, that must be reached at one of two successive lengths."""
    metrics: dict[str, str]
    """Task -> its metric."""
    scorer: str
    """Module whose `score` computes the metrics from the SAMPLE_COLUMNS of samples."""

    def accuracy(
        self, cell: Cell, predictions: pl.DataFrame, thought: ThoughtFormat | None
    ) -> float:
        """Mean of the task's metric over the answers to a cell, 0-1."""
        scorer, metric = importlib.import_module(self.scorer), self.metrics[cell.task]
        samples = cell.read(scorer.SAMPLE_COLUMNS)
        scores = scorer.score(samples, predictions, metric, False, thought)
        return float(scores[metric].mean())


def answer_by_length(
    cells: Sequence[Cell],
    answer: Callable[[Cell], pl.DataFrame],
    *,
    system: str,
    stop_rule: StopRule | None,
    thought: ThoughtFormat | None = None,
    skipped: Iterable[SkippedCell] = (),
) -> list[SkippedCell]:
    """Answer cells in ascending order of length, and skip those after a failure.

    Args:
        cells: in any order.
        answer: returns the predictions of a cell; may raise EarlyStop.
        system: name of the system.
        stop_rule: when low accuracy stops a task; None: never.
        thought: format of the system's reasoning.
        skipped: cells already known to fail.

    Returns:
        The cells that were skipped, those of `skipped` first.
    """
    stopped = {cell.task: cell for cell in skipped}
    known = {(cell.task, cell.length) for cell in skipped}
    found = list(skipped)
    reached: dict[str, list[tuple[int, float]]] = {}
    if stop_rule is not None and stop_rule.min_accuracy == 0:
        stop_rule = None
    for cell in sorted(cells, key=lambda cell: cell.length):
        if (cell.task, cell.length) in known:
            continue
        try:
            # A task that failed at a greater length answers the shorter ones.
            if cell.task in stopped and stopped[cell.task].length < cell.length:
                failed = stopped[cell.task]
                raise EarlyStop(failed.reason, failed.detail)
            accuracies = reached.setdefault(cell.task, [])
            if stop_rule is not None:
                _require_accuracy(accuracies[-2:], stop_rule.min_accuracy)
            predictions = answer(cell)
        except EarlyStop as stop:
            found.append(SkippedCell(system, cell.task, cell.length, stop.reason, stop.detail))
            stopped.setdefault(cell.task, found[-1])
        else:
            if stop_rule is not None:
                accuracies.append((cell.length, stop_rule.accuracy(cell, predictions, thought)))
    return found


def _require_accuracy(accuracies: list[tuple[int, float]], min_accuracy: float) -> None:
    """Stop if accuracy was below `min_accuracy` at two successive lengths."""
    if len(accuracies) == 2 and all(mean < min_accuracy for _, mean in accuracies):
        lengths = " and ".join(f"{length:,}" for length, _ in accuracies)
        means = " and ".join(f"{100 * mean:.1f} %" for _, mean in accuracies)
        raise EarlyStop(
            LOW_ACCURACY,
            f"accuracy {means} at {lengths}, below min_accuracy {100 * min_accuracy:g} %",
        )
