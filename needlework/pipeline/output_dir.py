"""The results folder."""

import os
from pathlib import Path


def require_writable(folder: str | Path) -> None:
    """Check that files can be created in `folder`, or in its nearest existing parent.

    Raises:
        ValueError: they cannot.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{existing}: is a file, but must be a folder; move the file away")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing}: is not writable; change its permissions or run elsewhere")
