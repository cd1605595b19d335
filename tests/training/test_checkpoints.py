"""Checkpoints: whole or not there, and nothing read back that is not what was written."""

import json
import resource
import signal
from pathlib import Path

import polars as pl
import pytest
import torch
from support.killable import Pool

from needlework.training.checkpoints import Checkpoints, fingerprint


def checkpoints(folder: Path, of: str = "this", keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, fingerprint(recipe=of), every=10, keep=keep)


def fill(found: Checkpoints, *steps: int) -> None:
    for step in steps:
        tensors = {"0.value": torch.full((20,), step / 3)}
        found.save(step, tensors, {"step": step, "loss": step / 7})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/step-*"))


def test_the_latest_comes_back_to_the_bit_and_as_many_are_kept_as_asked(tmp_path):
    assert checkpoints(tmp_path).latest() is None
    fill(checkpoints(tmp_path), 10, 20, 30)
    found = checkpoints(tmp_path).latest()
    assert found.progress == {"step": 30, "loss": 30 / 7}
    assert torch.equal(found.tensors["0.value"], torch.full((20,), 10.0))
    assert names(tmp_path) == ["step-00000020", "step-00000030"]
    fill(checkpoints(tmp_path, keep=1), 40)
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
def test_a_damaged_one_is_passed_over_in_one_line(tmp_path, caplog, damage, name):
    fill(checkpoints(tmp_path), 10, 20)
    (broken,) = tmp_path.glob("*/step-00000020")
    damage(broken / name)
    assert checkpoints(tmp_path).latest().progress["step"] == 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{broken}: passed over, the one before it is used: ")
    # What is written again in its place is whole.
    fill(checkpoints(tmp_path), 20)
    assert checkpoints(tmp_path).latest().progress["step"] == 20


def test_those_of_another_recipe_are_left_aside(tmp_path, caplog):
    caplog.set_level("INFO")
    fill(checkpoints(tmp_path, of="that"), 30)
    assert checkpoints(tmp_path).latest() is None
    assert "another recipe, data, base or code are left aside" in caplog.text
    fill(checkpoints(tmp_path), 10, 20, 30)
    assert checkpoints(tmp_path, of="that").latest().progress["step"] == 30


def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path):
    fill(checkpoints(tmp_path), 10)
    (whole,) = tmp_path.glob("*/step-00000010")
    half = whole.with_name(".partial-step-00000020")
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert checkpoints(tmp_path).latest().progress["step"] == 10
    fill(checkpoints(tmp_path), 20)
    assert checkpoints(tmp_path).latest().progress["step"] == 20
    assert not half.exists()


def lock(folder: Path) -> None:
    with checkpoints(folder).locked():
        pass


def test_two_do_not_train_the_same_at_once(tmp_path):
    with (
        checkpoints(tmp_path).locked(),
        Pool(1) as elsewhere,
        pytest.raises(ValueError, match="another process trains this; wait for it, or end it"),
    ):
        elsewhere.apply(lock, [tmp_path])
    lock(tmp_path)


def on_a_full_disk(folder: Path, bytes_left: int) -> list[str]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
    said = []
    for write in (
        lambda: fill(checkpoints(folder), 30),
        lambda: checkpoints(folder).show(metrics=pl.DataFrame({"step": range(5000)})),
    ):
        try:
            write()
        except ValueError as error:
            said += str(error).splitlines()
    return said


# No file may grow beyond so many bytes: all are too large, all but one, the manifest.
@pytest.mark.parametrize("bytes_left", [0, 30, 200])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, bytes_left):
    fill(checkpoints(tmp_path), 10, 20)
    with Pool(1) as elsewhere:
        saving, showing = elsewhere.apply(on_a_full_disk, [tmp_path, bytes_left])
    assert "step-00000030: cannot be written (" in saving
    assert saving.endswith("training goes on from step-00000020")
    assert "metrics.parquet: cannot be written (" in showing
    assert checkpoints(tmp_path).latest().progress["step"] == 20
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    assert not list(tmp_path.rglob(".partial-*"))
