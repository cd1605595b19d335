"""`needlework answers`: what the store of answers holds."""

import time
from collections.abc import Iterator
from pathlib import Path

from needlework.evaluation.stored_answers import StoredSystem, prune, stored_systems


def describe(store: Path, prune_days: float | None) -> Iterator[str]:
    """Lines that list the systems of the store, or those that are deleted.

    Args:
        store: its folder.
        prune_days: delete systems that no run has used for this many days; None: delete nothing.

    Raises:
        ValueError: the store is damaged.
    """
    systems = list(stored_systems(store)) if prune_days is None else prune(store, prune_days)
    for system in systems:
        used = time.strftime("%Y-%m-%d", time.localtime(system.last_used))
        yield (
            f"{system.system}: {_amount(system)}, {system.model} on {system.device}, last used "
            f"{used} [{system.folder}]"
        )
    total = sum(system.answers for system in systems)
    size = sum(system.size_bytes for system in systems)
    verb = "stored" if prune_days is None else "deleted"
    yield f"{verb}: answers {total:,}, systems {len(systems)}, {size / 1e6:.1f} MB"


def _amount(system: StoredSystem) -> str:
    return f"{system.answers:,} answers ({system.size_bytes / 1e6:.1f} MB)"
