"""A lock between processes that ends with the process that holds it, so it is never stale."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, busy_message: str) -> Iterator[None]:
    """Hold a lock on the file `path`, creating it and its folder if needed.

    Raises:
        ValueError: another process holds the lock; the message is `busy_message`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(busy_message) from None
    try:
        yield
    finally:
        lock.release()
