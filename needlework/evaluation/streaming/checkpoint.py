"""Checkpoint of a run through a text, from which an interrupted run resumes."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SAVE_EVERY_SECONDS = 60.0
_log = logging.getLogger(__name__)


class StreamCheckpoint:
    """One safetensors file with JSON in its header, replaced atomically.

    Args:
        path: the file.
        key: identifies text, model and settings; a file with another key is ignored and later
            overwritten.
        every_seconds: minimum time between two saves.
    """

    def __init__(self, path: str | Path, key: str, every_seconds: float = SAVE_EVERY_SECONDS):
        self.path, self.key, self.every_seconds = Path(path), key, every_seconds
        self._last_save = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last_save >= self.every_seconds

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return progress and tensors of the last save, or None if there is none.

        Raises:
            ValueError: the file is not a checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                progress = json.loads(file.metadata()["checkpoint"])
                if progress["key"] != self.key:
                    _log.warning(
                        "%s: belongs to another model or other settings; starting over", self.path
                    )
                    return None
                names = file.keys()
                return progress, {name: file.get_tensor(name) for name in names}
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path}: is not a checkpoint ({error}); delete it") from None

    def save(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Save progress (JSON values) and tensors together."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A kill may leave this file; the next save overwrites it.
        partial = self.path.with_name(f".partial-{self.path.name}")
        metadata = {"checkpoint": json.dumps({**progress, "key": self.key})}
        save_file({k: x.contiguous() for k, x in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._last_save = time.monotonic()


def other_text_error(progress: dict[str, Any]) -> ValueError:
    """The error to raise if a checkpoint belongs to another text."""
    return ValueError(
        f"the checkpoint belongs to another text: document {progress['document']} differs from "
        f"token {progress['at']} on; delete it, or name another file"
    )


def tensors_under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors with names that start with `prefix`, by the rest of their names."""
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
