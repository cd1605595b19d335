"""The results folder: whether it can be written, before any work starts."""

import os
from pathlib import Path


def require_writable(folder: str | Path) -> None:
    """Check that files can be made in `folder`, or in the nearest folder above it that exists.

    Raises:
        ValueError: they cannot.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{existing}: is a file where a folder should be; move it away")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing}: cannot be written; make it writable, or run elsewhere")
