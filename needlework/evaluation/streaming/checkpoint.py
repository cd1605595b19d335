"""A run's state on disk, so that a killed run goes on where it was last saved."""

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


class Journal:
    """One safetensors file, its JSON in the header, written whole or not at all.

    Args:
        path: the file; what it saves is of no use to another text, model or setting.
        key: says which; a file with another key is left aside, and written over.
        every_seconds: least time between two saves.
    """

    def __init__(self, path: str | Path, key: str, every_seconds: float = SAVE_EVERY_SECONDS):
        self.path, self.key, self.every_seconds = Path(path), key, every_seconds
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.every_seconds

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was saved last; None where nothing was.

        Raises:
            ValueError: the file is none of ours.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                told = json.loads(file.metadata()["journal"])
                if told["key"] != self.key:
                    _log.warning("%s: is of another model or setting; beginning anew", self.path)
                    return None
                names = file.keys()
                return told, {name: file.get_tensor(name) for name in names}
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path}: no saved state ({error}); delete it") from None

    def save(self, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Save JSON and tensors together."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The next save writes over what a kill may leave of it.
        partial = self.path.with_name(f".partial-{self.path.name}")
        metadata = {"journal": json.dumps({**told, "key": self.key})}
        save_file({k: x.contiguous() for k, x in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._saved = time.monotonic()


def other_text(told: dict[str, Any]) -> ValueError:
    """What to raise where a saved state is not of the text that is read."""
    return ValueError(
        f"the saved state is of another text: document {told['document']} differs from token "
        f"{told['at']} on; delete it, or name another file"
    )


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those saved under a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
