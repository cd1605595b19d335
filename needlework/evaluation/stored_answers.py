"""What the store of answers holds, system by system, and removal of what is no longer used."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from needlework.evaluation.answer_store import FACTS_FILE


@dataclass(frozen=True)
class StoredSystem:
    """The stored answers of one system."""

    folder: Path
    system: str
    """Its name in the experiment that last added answers."""
    model: str
    """Folder or hub name of its model there."""
    experiment: str
    device: str
    answers: int
    """Number of answers."""
    size_bytes: int
    last_used: float
    """When a job last read or added answers, in seconds since 1970."""


def stored_systems(store: Path) -> Iterator[StoredSystem]:
    """Systems in the store, the most recently used first.

    Raises:
        ValueError: a folder of the store is damaged.
    """
    folders = [path.parent for path in store.glob(f"*/{FACTS_FILE}")]
    for folder in sorted(folders, key=_last_used, reverse=True):
        try:
            about = json.loads((folder / FACTS_FILE).read_text())
            label, device = about["label"], about["facts"]["device"]
            named = {name: label[name] for name in ("system", "model", "experiment")}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{folder / FACTS_FILE}: is damaged; delete {folder}, whose answers are then "
                "generated again"
            ) from None
        segments = [path.read_bytes() for path in folder.glob("*.jsonl")]
        yield StoredSystem(
            folder,
            **named,
            device=device,
            answers=sum(segment.count(b"\n") for segment in segments),
            size_bytes=sum(map(len, segments)),
            last_used=_last_used(folder),
        )


def prune(store: Path, unused_days: float) -> list[StoredSystem]:
    """Delete the answers of systems that no job has used for some days; return those systems."""
    oldest = time.time() - 86400 * unused_days
    unused = [system for system in stored_systems(store) if system.last_used < oldest]
    for system in unused:
        shutil.rmtree(system.folder)
    return unused


def _last_used(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.iterdir())
