"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

_log = logging.getLogger(__name__)
LINE_EVERY_SECONDS = 15.0


class Track(tqdm):
    """A tqdm that also logs a plain line now and then, and draws a bar only on a terminal."""

    _next_line = 0.0

    def display(self, msg=None, pos=None):
        is_drawn = sys.stderr.isatty()
        if is_drawn:
            super().display(msg, pos)
        now = time.monotonic()
        if now >= self._next_line or (self.total is not None and self.n >= self.total):
            self._next_line = now + LINE_EVERY_SECONDS
            meter = {**self.format_dict, "ncols": 0, "bar_format": "{desc}{n_fmt}/{total_fmt}"}
            meter["bar_format"] += " [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            _log.info(self.format_meter(**meter))
        return is_drawn


def track(
    iterable: Iterable | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> Track:
    """Iterate as tqdm does (`update`, `set_postfix` too), under `description`, counting `unit`s."""
    return Track(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        leave=False,
        mininterval=0.5,
    )
