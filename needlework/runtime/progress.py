"""Progress of long work: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_log = logging.getLogger(__name__)
LOG_EVERY_SECONDS = 15.0


class Track(tqdm):
    """A tqdm that draws a bar only on a terminal, and also logs a plain line at intervals."""

    _next_log_time = 0.0

    # The stubs of tqdm omit the return value.
    def display(  # type: ignore[override]
        self, msg: str | None = None, pos: int | None = None
    ) -> bool:
        is_drawn = sys.stderr.isatty()
        if is_drawn:
            super().display(msg, pos)
        now = time.monotonic()
        if now >= self._next_log_time or (self.total is not None and self.n >= self.total):
            self._next_log_time = now + LOG_EVERY_SECONDS
            meter = {**self.format_dict, "ncols": 0, "bar_format": "{desc}{n_fmt}/{total_fmt}"}
            meter["bar_format"] += " [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            _log.info(self.format_meter(**meter))
        return is_drawn


def track(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> Track:
    """Track progress as tqdm does, through iteration or `update`.

    Args:
        iterable: items to iterate over; None: call `update`.
        description: text before the bar.
        total: expected number of `unit`s.
        unit: name of what is counted.
        initial: units done before the start.
    """
    return Track(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        leave=False,
        mininterval=0.5,
    )
