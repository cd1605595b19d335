"""Snakemake logger plugin: write job events as JSON lines, for the progress of `needlework run`.

Snakemake finds plugins by package name on the path. `needlework.pipeline.runner` adds the folder
of this one to the path of the process that it starts, so there is nothing to install. The lines go
to the file descriptor in the environment variable NEEDLEWORK_EVENTS.
"""

import json
import logging
import os
from contextlib import suppress

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

_FIELDS = {
    LogEvent.RUN_INFO: ("stats",),
    LogEvent.PROGRESS: ("done", "total"),
    LogEvent.JOB_INFO: ("jobid", "rule_name", "wildcards", "log"),
    LogEvent.JOB_FINISHED: ("job_id",),
    LogEvent.JOB_ERROR: ("jobid", "rule_name", "log"),
    LogEvent.ERROR: ("msg",),
}


class LogHandler(LogHandlerBase):
    """Writes the events that `needlework.pipeline.progress` reads."""

    writes_to_stream = False
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self._events = os.fdopen(int(os.environ["NEEDLEWORK_EVENTS"]), "w", buffering=1)

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event in _FIELDS:
            fields = {name: getattr(record, name, None) for name in _FIELDS[event]}
            # The run continues when its reader is gone.
            with suppress(OSError):
                print(json.dumps({"event": event.value, **fields}, default=str), file=self._events)
