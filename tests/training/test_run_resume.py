"""A killed training run ends with the same result as an uninterrupted one."""

import logging
import resource
import signal
from pathlib import Path

import polars as pl
import pytest
from support.killable import Pool, kill_when
from support.toy_training import finetuned, mixed, product, write

from needlework.config.opening import ModelSpec
from needlework.config.training import Distill, Pretrain, PretrainStage
from needlework.training.checkpoints import Checkpoints
from needlework.training.distill.gates import distill_checkpoint
from needlework.training.pretrain import pretrain_model
from needlework.training.run import run

pytestmark = pytest.mark.slow


def pretrained(folder: Path) -> Checkpoints:
    stages = [
        PretrainStage(length=64, rows=2, steps=9, exercises=["recall"]),
        PretrainStage(length=128, rows=2, steps=12, exercises=["passkey", "noise"], jumps=0.5),
    ]
    config = Pretrain(
        stages=stages, layers=1, hidden_size=32, head_size=16, log_every=4, checkpoint_every=6
    )
    path = folder / "checkpoints"
    return run(pretrain_model, config, path, threads=1, fingerprint_inputs={}, seed=3)


def distilled(folder: Path, **changes) -> Checkpoints:
    config = Distill(
        data=["toy"],
        **{"steps": 40, "sequence_length": 32, "batch_size": 2, "log_every": 3, **changes},
        prefill_rows=2,
        decode_queries=2,
        checkpoint_every=7,
    )
    paths = write(folder)
    return run(
        distill_checkpoint,
        config,
        folder / "checkpoints",
        threads=1,
        fingerprint_inputs={},
        model=ModelSpec(path=paths["base"]).dump(),
        gates={"model": "toy", "block_size": 3},
        rows=[paths["rows"]["toy"]],
        seed=3,
    )


# Steps at which a checkpoint is complete or partly written.
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
def test_kill_9_does_not_change_the_result(tmp_path, caplog, training, steps):
    weights, metrics = product(training(tmp_path / "uninterrupted"))
    killed, (first, second, third) = tmp_path / "killed", steps
    for pattern in (
        "checkpoints/lock",
        "checkpoints/metrics.parquet",
        f"checkpoints/*/step-{first}",
        f"checkpoints/*/.partial-step-{second}",
        f"checkpoints/*/step-{third}",
    ):
        kill_when(training, killed, pattern)
        live_tables = list(killed.glob("checkpoints/metrics.parquet"))
        assert all(len(pl.read_parquet(path)) for path in live_tables)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(training(killed))
    assert ": resuming from step " in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def test_altered_checkpoint_only_costs_its_own_steps(tmp_path, caplog):
    weights, metrics = product(finetuned(tmp_path / "uninterrupted"))
    kill_when(finetuned, tmp_path / "killed", "checkpoints/*/step-*21")
    (altered,) = (tmp_path / "killed").glob("checkpoints/*/step-*21")
    with (altered / "tensors.safetensors").open("r+b") as file:
        file.truncate(1000)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(finetuned(tmp_path / "killed"))
    assert f"{altered}: damaged" in caplog.text
    assert "fine-tuning: resuming from step 14 of 89" in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def test_changed_recipe_restarts_but_changed_checkpoint_settings_resume(tmp_path, caplog):
    kill_when(finetuned, tmp_path, "checkpoints/*/step-*14")
    caplog.set_level(logging.INFO)
    finetuned(tmp_path, checkpoint_every=30, keep_checkpoints=1)
    assert "resuming from step" in caplog.text
    caplog.clear()
    finetuned(tmp_path, learning_rate=2e-3)
    assert "resuming from step" not in caplog.text
    assert "ignoring checkpoints" in caplog.text


def test_finished_training_is_not_repeated(tmp_path, caplog):
    weights = product(finetuned(tmp_path))[0]
    caplog.set_level(logging.INFO)
    assert product(finetuned(tmp_path))[0] == weights
    assert "resuming from step 89 of 89" in caplog.text


def on_a_full_disk(folder: Path) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        finetune_on_a_disk_that_fills_up(folder)
    return str(caught.value)


def finetune_on_a_disk_that_fills_up(folder: Path) -> None:
    """Train on a disk with no room for the checkpoint of step 14."""
    save = Checkpoints.save

    def save_with_limit(self, step, *args):
        if step == 14:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(self, step, *args)

    Checkpoints.save = save_with_limit
    finetuned(folder)


def test_disk_that_fills_up_is_a_one_line_error_and_training_resumes(tmp_path):
    weights, metrics = product(finetuned(tmp_path / "uninterrupted"))
    with Pool(1) as elsewhere:
        message = elsewhere.apply(on_a_full_disk, [tmp_path / "filled"])
    assert "step-00000014: cannot be written (" in message
    assert message.endswith("training resumes from step-00000007")
    assert len(message.splitlines()) == 1
    again, metrics_again = product(finetuned(tmp_path / "filled"))
    assert again == weights
    assert metrics_again.equals(metrics)
