"""A training that is killed at any moment comes to the same end as one that is not."""

import logging
import resource
import signal
from pathlib import Path

import polars as pl
import pytest
from support.killable import Pool, kill_when
from support.toy_training import finetuned, mixed, product, write

from needlework.config.training import Distill, Pretrain, PretrainStage
from needlework.training.checkpoints import Checkpoints
from needlework.training.distill.gates import distill_checkpoint
from needlework.training.pretrain import pretrain_model
from needlework.training.run import run


def pretrained(folder: Path) -> Checkpoints:
    stages = [
        PretrainStage(length=64, rows=2, steps=9, exercises=["recall"]),
        PretrainStage(length=128, rows=2, steps=12, exercises=["passkey", "noise"], jumps=0.5),
    ]
    config = Pretrain(
        stages=stages, layers=1, hidden_size=32, head_size=16, log_every=4, checkpoint_every=6
    )
    path = folder / "checkpoints"
    return run(pretrain_model, config, path, threads=1, decisive={}, seed=3)


def distilled(folder: Path, **changes) -> Checkpoints:
    config = Distill(
        data=["toy"],
        **{"steps": 40, "sequence_length": 32, "batch_size": 2, "log_every": 3, **changes},
        prefill_rows=2,
        decode_queries=2,
        checkpoint_every=7,
    )
    made = write(folder)
    return run(
        distill_checkpoint,
        config,
        folder / "checkpoints",
        threads=1,
        decisive={},
        model=made["base"],
        revision=None,
        dtype="float32",
        allow_pickle=False,
        gates={"model": "toy", "block_size": 3},
        rows=[made["rows"]["toy"]],
        seed=3,
    )


# Steps that checkpoints are whole or half written at.
@pytest.mark.parametrize(
    ("training", "steps"),
    [
        (finetuned, ["*7", "*14", "*28"]),
        (mixed, ["*7", "*14", "*28"]),
        (pretrained, ["*6", "*12", "*18"]),
        (distilled, ["*7", "*14", "*28"]),
    ],
    ids=["finetuned", "mixed", "pretrained", "distilled"],
)
def test_kill_9_changes_nothing(tmp_path, caplog, training, steps):
    weights, metrics = product(training(tmp_path / "undisturbed"))
    killed, (first, second, third) = tmp_path / "killed", steps
    for there in (
        "checkpoints/lock",
        "checkpoints/metrics.parquet",
        f"checkpoints/*/step-{first}",
        f"checkpoints/*/.partial-step-{second}",
        f"checkpoints/*/step-{third}",
    ):
        kill_when(training, killed, there)
        shown = list(killed.glob("checkpoints/metrics.parquet"))
        assert all(len(pl.read_parquet(path)) for path in shown)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(training(killed))
    assert " goes on from step " in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def test_an_altered_checkpoint_costs_its_steps_alone(tmp_path, caplog):
    weights, metrics = product(finetuned(tmp_path / "undisturbed"))
    kill_when(finetuned, tmp_path / "killed", "checkpoints/*/step-*21")
    (altered,) = (tmp_path / "killed").glob("checkpoints/*/step-*21")
    with (altered / "tensors.safetensors").open("r+b") as file:
        file.truncate(1000)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(finetuned(tmp_path / "killed"))
    assert f"{altered}: passed over" in caplog.text
    assert "fine-tuning goes on from step 14 of 89" in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def test_another_recipe_begins_anew_and_another_layout_of_checkpoints_does_not(tmp_path, caplog):
    kill_when(finetuned, tmp_path, "checkpoints/*/step-*14")
    caplog.set_level(logging.INFO)
    finetuned(tmp_path, checkpoint_every=30, keep_checkpoints=1)
    assert "goes on from step" in caplog.text
    caplog.clear()
    finetuned(tmp_path, learning_rate=2e-3)
    assert "goes on from step" not in caplog.text
    assert "left aside" in caplog.text


def test_a_finished_training_is_not_done_again(tmp_path, caplog):
    weights = product(finetuned(tmp_path))[0]
    caplog.set_level(logging.INFO)
    assert product(finetuned(tmp_path))[0] == weights
    assert "goes on from step 89 of 89" in caplog.text


def on_a_full_disk(folder: Path) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        limited(folder)
    return str(caught.value)


def limited(folder: Path) -> None:
    """The checkpoint of step 14 does not fit any more."""
    save = Checkpoints.save

    def save_in_little_room(self, step, *args):
        if step == 14:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(self, step, *args)

    Checkpoints.save = save_in_little_room
    finetuned(folder)


def test_a_disk_that_fills_up_while_training_is_one_line_and_loses_nothing(tmp_path):
    weights, metrics = product(finetuned(tmp_path / "undisturbed"))
    with Pool(1) as elsewhere:
        said = elsewhere.apply(on_a_full_disk, [tmp_path / "filled"])
    assert "step-00000014: cannot be written (" in said
    assert said.endswith("training goes on from step-00000007")
    assert len(said.splitlines()) == 1
    again, metrics_again = product(finetuned(tmp_path / "filled"))
    assert again == weights
    assert metrics_again.equals(metrics)
