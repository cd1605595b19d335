"""What the commands print to, and paths of the command line."""

import sys
from pathlib import Path

from rich.console import Console

# Do not wrap long paths in piped output.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 300)
error_console = Console(
    stderr=True, soft_wrap=True, highlight=False, width=None if sys.stderr.isatty() else 300
)


def path(text: str) -> Path:
    """A path of the command line; shells do not expand ~ in quotes and after `=`."""
    return Path(text).expanduser()
