"""Training checkpoints: written atomically and verified by hash when read.

    {folder}/lock                         held by the process that trains
    {folder}/metrics.parquet              tables so far, readable during training
    {folder}/measurements.parquet
    {folder}/{fingerprint}/step-00000100/ tensors.safetensors, progress.json, manifest.json
    {folder}/{fingerprint}/product/       the trained model, before it moves to its final place

The manifest is written last and holds the sha256 of the other two files. The fingerprint identifies
everything that determines the trained model; checkpoints with another fingerprint are ignored.
"""

import hashlib
import json
import logging
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from needlework.pipeline.lock import locked
from needlework.pipeline.provenance import sha256_file

TENSORS, PROGRESS = "tensors.safetensors", "progress.json"
_log = logging.getLogger(__name__)


def fingerprint(**inputs: Any) -> str:
    """Hash everything that determines the trained model to 16 hexadecimal digits."""
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after some step."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """JSON values; floats survive the round trip exactly."""


class Checkpoints:
    """The checkpoints of one training run.

    Args:
        folder: used by this training run alone.
        fingerprint: see `fingerprint`.
        every: steps between checkpoints.
        keep: number of latest checkpoints to keep.
    """

    def __init__(self, folder: str | Path, fingerprint: str, *, every: int, keep: int):
        self.folder = Path(folder)
        self.fingerprint, self.every, self.keep = fingerprint, every, keep

    @property
    def product(self) -> Path:
        """Folder for the trained model until it moves to its final place."""
        return self.folder / self.fingerprint / "product"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder's lock, so that only one process writes to it.

        Raises:
            ValueError: another process holds it.
        """
        message = (
            f"{self.folder}: locked by another process that trains this model; wait for it to "
            "finish, or stop it"
        )
        return locked(self.folder / "lock", message)

    def latest(self) -> Checkpoint | None:
        """Return the latest intact checkpoint; log one line for each damaged one."""
        others = [path.name for path in self.folder.glob("*/") if path.name != self.fingerprint]
        if others:
            _log.info(
                "%s: ignoring checkpoints of another recipe, data, base model or code: %s",
                self.folder,
                ", ".join(sorted(others)),
            )
        for path in reversed(self._paths()):
            try:
                return self._read(path)
            except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
                _log.warning("%s: damaged, falling back to the one before: %s", path, error)
        return None

    def save(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step`, then delete all but the latest `keep`.

        Raises:
            ValueError: it cannot be written; earlier checkpoints remain.
        """
        path = self.folder / self.fingerprint / f"step-{step:08}"
        partial = path.with_name(f".partial-{path.name}")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(tensors, partial / TENSORS)
            (partial / PROGRESS).write_text(json.dumps(progress))
            hashes = {file.name: sha256_file(file) for file in partial.iterdir()}
            manifest = {"fingerprint": self.fingerprint, "step": step, "sha256": hashes}
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for file in (*partial.iterdir(), partial):
                _sync(file)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
            _sync(path.parent)
            for old in self._paths()[: -self.keep]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            previous = self._paths()[-1].name if self._paths() else "the start"
            raise ValueError(
                f"{path}: cannot be written ({error}); fix this and rerun: training resumes from "
                f"{previous}"
            ) from None

    def write_live_tables(self, **tables: pl.DataFrame) -> None:
        """Write each table to `{name}.parquet` atomically, to be read during training.

        Raises:
            ValueError: a table cannot be written.
        """
        for name, table in tables.items():
            partial = self.folder / f".partial-{name}.parquet"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                table.write_parquet(partial)
                partial.replace(self.folder / f"{name}.parquet")
            except (OSError, PolarsError) as error:
                partial.unlink(missing_ok=True)
                raise ValueError(f"{partial}: cannot be written ({error})") from None

    def remove(self) -> None:
        """Delete the folder; call it once the trained model is in its final place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted((self.folder / self.fingerprint).glob("step-*"))

    def _read(self, path: Path) -> Checkpoint:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["fingerprint"] != self.fingerprint:
            raise ValueError("its fingerprint is that of another recipe, data, base model or code")
        for name in (TENSORS, PROGRESS):
            if sha256_file(path / name) != manifest["sha256"][name]:
                raise ValueError(f"{name} is truncated or altered")
        progress = json.loads((path / PROGRESS).read_bytes())
        return Checkpoint(load_file(path / TENSORS), progress)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
