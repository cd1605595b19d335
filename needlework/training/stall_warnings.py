"""Signs that a training goes nowhere, told in the log once."""

import logging
import math
from statistics import fmean
from typing import Any

_log = logging.getLogger(__name__)

ROWS = 10
"""Rows of the metrics after which there is something to say."""
STILL = 1e-3
"""A gate that has moved by less has not moved."""


def warn(metrics: list[dict[str, Any]]) -> None:
    """Log a line for each sign that the first ROWS rows of the metrics show."""
    if len(metrics) != ROWS:
        return
    step = metrics[-1]["step"]
    first, last = (
        fmean(row["loss"] for row in half) for half in (metrics[: ROWS // 2], metrics[ROWS // 2 :])
    )
    if last >= first:
        _log.warning(
            "the loss has not fallen over the first %d steps (mean %.4g, then %.4g): "
            "try another learning_rate, or look at the rows",
            step,
            first,
            last,
        )
    gates = [name for name in metrics[0] if name.startswith("gate_")]
    moved = max((abs(metrics[-1][name] - metrics[0][name]) for name in gates), default=math.inf)
    if moved < STILL:
        _log.warning(
            "no gate has moved by more than %.1g over the first %d steps: raise "
            "balance_factor_learning_rate (0.01 is published), or see that memory is on",
            moved,
            step,
        )
