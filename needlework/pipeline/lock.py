"""A lock that dies with the process that holds it, so a stale one cannot be."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock on the file `path`, made with its folder where it is not there.

    Raises:
        ValueError: another process holds it; `otherwise` is said.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        yield
