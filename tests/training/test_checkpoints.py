"""Checkpoints are complete or absent, and damaged ones are never read back."""

import json
import resource
import signal
from pathlib import Path

import polars as pl
import pytest
import torch
from support.killable import Pool

from needlework.training.checkpoints import Checkpoints, fingerprint

pytestmark = pytest.mark.slow


def checkpoints(folder: Path, recipe: str = "this", keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, fingerprint(recipe=recipe), every=10, keep=keep)


def save_steps(target: Checkpoints, *steps: int) -> None:
    for step in steps:
        tensors = {"0.value": torch.full((20,), step / 3)}
        target.save(step, tensors, {"step": step, "loss": step / 7})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/step-*"))


def test_latest_checkpoint_is_bit_identical_and_keep_limits_their_number(tmp_path):
    assert checkpoints(tmp_path).latest() is None
    save_steps(checkpoints(tmp_path), 10, 20, 30)
    latest = checkpoints(tmp_path).latest()
    assert latest.progress == {"step": 30, "loss": 30 / 7}
    assert torch.equal(latest.tensors["0.value"], torch.full((20,), 10.0))
    assert names(tmp_path) == ["step-00000020", "step-00000030"]
    save_steps(checkpoints(tmp_path, keep=1), 40)
    assert names(tmp_path) == ["step-00000040"]
    checkpoints(tmp_path).remove()
    assert not tmp_path.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_fingerprint(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 16}))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (cut, "tensors.safetensors"),
        (flip, "tensors.safetensors"),
        (flip, "progress.json"),
        (Path.unlink, "progress.json"),
        (cut, "manifest.json"),
        (Path.unlink, "manifest.json"),
        (lambda path: path.write_text("[]"), "manifest.json"),
        (lambda path: path.write_text("{}"), "manifest.json"),
        (other_fingerprint, "manifest.json"),
    ],
)
def test_damaged_checkpoint_is_skipped_with_one_line(tmp_path, caplog, damage, name):
    save_steps(checkpoints(tmp_path), 10, 20)
    (broken,) = tmp_path.glob("*/step-00000020")
    damage(broken / name)
    assert checkpoints(tmp_path).latest().progress["step"] == 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{broken}: damaged, falling back to the one before: ")
    # A new checkpoint replaces the damaged one.
    save_steps(checkpoints(tmp_path), 20)
    assert checkpoints(tmp_path).latest().progress["step"] == 20


def test_checkpoints_of_another_recipe_are_ignored(tmp_path, caplog):
    caplog.set_level("INFO")
    save_steps(checkpoints(tmp_path, recipe="that"), 30)
    assert checkpoints(tmp_path).latest() is None
    assert "ignoring checkpoints of another recipe, data, base model or code" in caplog.text
    save_steps(checkpoints(tmp_path), 10, 20, 30)
    assert checkpoints(tmp_path, recipe="that").latest().progress["step"] == 30


def test_partial_checkpoint_is_ignored_and_overwritten(tmp_path):
    save_steps(checkpoints(tmp_path), 10)
    (complete,) = tmp_path.glob("*/step-00000010")
    partial = complete.with_name(".partial-step-00000020")
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"partial")
    assert checkpoints(tmp_path).latest().progress["step"] == 10
    save_steps(checkpoints(tmp_path), 20)
    assert checkpoints(tmp_path).latest().progress["step"] == 20
    assert not partial.exists()


def lock(folder: Path) -> None:
    with checkpoints(folder).locked():
        pass


def test_second_process_is_locked_out(tmp_path):
    with (
        checkpoints(tmp_path).locked(),
        Pool(1) as elsewhere,
        pytest.raises(ValueError, match="locked by another process that trains this model; wait"),
    ):
        elsewhere.apply(lock, [tmp_path])
    lock(tmp_path)


def on_a_full_disk(folder: Path, bytes_left: int) -> list[str]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
    messages = []
    for write in (
        lambda: save_steps(checkpoints(folder), 30),
        lambda: checkpoints(folder).write_live_tables(metrics=pl.DataFrame({"step": range(5000)})),
    ):
        try:
            write()
        except ValueError as error:
            messages += str(error).splitlines()
    return messages


# The limit on file size stops, in turn: every file; all but one; only the manifest.
@pytest.mark.parametrize("bytes_left", [0, 30, 200])
def test_full_disk_is_a_one_line_error_and_keeps_earlier_checkpoints(tmp_path, bytes_left):
    save_steps(checkpoints(tmp_path), 10, 20)
    with Pool(1) as elsewhere:
        saving, tables = elsewhere.apply(on_a_full_disk, [tmp_path, bytes_left])
    assert "step-00000030: cannot be written (" in saving
    assert saving.endswith("training resumes from step-00000020")
    assert "metrics.parquet: cannot be written (" in tables
    assert checkpoints(tmp_path).latest().progress["step"] == 20
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    assert not list(tmp_path.rglob(".partial-*"))
