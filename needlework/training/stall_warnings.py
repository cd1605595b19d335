"""Early warnings of a training run that makes no progress."""

import logging
import math
from statistics import fmean
from typing import Any

_log = logging.getLogger(__name__)

ROWS = 10
"""Rows of metrics needed for a judgement."""
MIN_GATE_CHANGE = 1e-3
"""A gate that has changed by less counts as stuck."""


def warn_if_stalled(metrics: list[dict[str, Any]]) -> None:
    """Log a warning if the loss or the gates have not moved in the first ROWS rows of metrics.

    Does nothing at any other number of rows, so that each warning appears once.
    """
    if len(metrics) != ROWS:
        return
    step = metrics[-1]["step"]
    first, last = (
        fmean(row["loss"] for row in half) for half in (metrics[: ROWS // 2], metrics[ROWS // 2 :])
    )
    if last >= first:
        _log.warning(
            "the loss has not fallen in the first %d steps (mean %.4g, then %.4g): "
            "try another learning_rate, or inspect the training rows",
            step,
            first,
            last,
        )
    gates = [name for name in metrics[0] if name.startswith("gate_")]
    change = max((abs(metrics[-1][name] - metrics[0][name]) for name in gates), default=math.inf)
    if change < MIN_GATE_CHANGE:
        _log.warning(
            "no gate has changed by more than %.1g in the first %d steps: raise "
            "balance_factor_learning_rate (the paper uses 0.01), or check that memory is on",
            change,
            step,
        )
