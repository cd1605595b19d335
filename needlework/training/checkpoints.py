"""Checkpoints of a training: written whole or not at all, read back only where they are whole.

    {folder}/lock                         held by the process that trains
    {folder}/metrics.parquet              the tables so far, to look at while it runs
    {folder}/measurements.parquet
    {folder}/{fingerprint}/step-00000100/ tensors.safetensors, progress.json, manifest.json
    {folder}/{fingerprint}/product/       the trained model, on its way to its place

The manifest is written last and holds the sha256 of the other two. What a fingerprint stands for
decides the training's product; checkpoints of another one are left aside.
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


def fingerprint(**decisive: Any) -> str:
    """16 hexadecimal digits that stand for everything that decides a training's product."""
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood after some steps."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """What JSON can hold; floats come back to the bit."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: of this training alone.
        fingerprint: of what decides its product.
        every: steps between checkpoints.
        keep: latest checkpoints kept.
    """

    def __init__(self, folder: str | Path, fingerprint: str, *, every: int, keep: int):
        self.folder = Path(folder)
        self.fingerprint, self.every, self.keep = fingerprint, every, keep

    @property
    def product(self) -> Path:
        """The folder for what the training makes, until it is moved to its place."""
        return self.folder / self.fingerprint / "product"

    def locked(self) -> AbstractContextManager[None]:
        """A lock for as long as this process trains: of two that write, neither would be whole.

        Raises:
            ValueError: another process holds it.
        """
        busy = f"{self.folder}: another process trains this; wait for it, or end it"
        return locked(self.folder / "lock", busy)

    def latest(self) -> Checkpoint | None:
        """The last whole checkpoint; one line in the log for each that is passed over."""
        others = [path.name for path in self.folder.glob("*/") if path.name != self.fingerprint]
        if others:
            _log.info(
                "%s: checkpoints of another recipe, data, base or code are left aside: %s",
                self.folder,
                ", ".join(sorted(others)),
            )
        for path in reversed(self._paths()):
            try:
                return self._read(path)
            except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
                _log.warning("%s: passed over, the one before it is used: %s", path, error)
        return None

    def save(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step`, then delete those beyond `keep`.

        Raises:
            ValueError: it cannot be written; what was there before still is.
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
            before = self._paths()[-1].name if self._paths() else "the start"
            raise ValueError(
                f"{path}: cannot be written ({error}); mend that and run again: training goes on "
                f"from {before}"
            ) from None

    def show(self, **tables: pl.DataFrame) -> None:
        """Write `{name}.parquet` of each table, at any moment whole, for those who look."""
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
        """Delete the folder, once what was trained is whole elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted((self.folder / self.fingerprint).glob("step-*"))

    def _read(self, path: Path) -> Checkpoint:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["fingerprint"] != self.fingerprint:
            raise ValueError("it is of another recipe, data, base or code")
        for name in (TENSORS, PROGRESS):
            if sha256_file(path / name) != manifest["sha256"][name]:
                raise ValueError(f"{name} is cut short or altered")
        progress = json.loads((path / PROGRESS).read_bytes())
        return Checkpoint(load_file(path / TENSORS), progress)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
