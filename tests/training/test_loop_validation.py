"""Validation on held-out text during training, which it does not affect."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from support.killable import Pool, kill_when
from support.toy_training import finetuned, product, validated
from torch.nn.functional import cross_entropy

from needlework.config.opening import ModelSpec
from needlework.models.checkpoint import open_model
from needlework.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

SHORT = {"steps": 20}


def test_validation_loss_matches_one_pass_and_does_not_affect_training(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain, without = product(finetuned(tmp_path / "plain", **SHORT))
    checkpoints = validated(tmp_path / "validated", **SHORT)
    weights, metrics = product(checkpoints)
    assert weights == plain
    with_loss = metrics.drop_nulls("validation_loss")
    assert with_loss["step"].to_list() == [9, 18, 27, 29]
    # Rows of the same step agree, except for losses, which are means since the previous row.
    both = metrics.join(without, on="step", maintain_order="left")
    assert len(both) == len(without)
    assert both["gradient_norm"].equals(both["gradient_norm_right"])

    model, _ = open_model(ModelSpec(path=checkpoints.product))
    ids = torch.from_numpy(np.load(tmp_path / "validated/0.npy").astype(np.int64))[:80]
    with torch.no_grad():
        # Like a stream: segments start at the first token.
        logits = model(ids[None], segment_offset=torch.zeros(1, dtype=torch.int64)).logits[0, :-1]
    expected = cross_entropy(logits, ids[1:]).item()
    assert with_loss["validation_loss"][-1] == pytest.approx(expected, rel=1e-5)
    line = f"step 29: loss on held-out text {with_loss['validation_loss'][-1]:.4f}"
    assert line in caplog.text
    assert "step 0: loss on held-out text" in caplog.text


def short(folder: Path) -> Checkpoints:
    return validated(folder, **SHORT)


def test_kill_9_does_not_change_the_result(tmp_path, caplog):
    weights, metrics = product(short(tmp_path / "uninterrupted"))
    killed = tmp_path / "killed"
    for pattern in ("checkpoints/metrics.parquet", "checkpoints/*/step-*14"):
        kill_when(short, killed, pattern)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(short(killed))
    assert ": resuming from step " in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def wrong_text(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        validated(folder, top=40, **SHORT)
    return str(caught.value)


def test_text_of_another_tokenizer_fails_before_the_first_step(tmp_path):
    with Pool(1) as elsewhere:
        message = elsewhere.apply(wrong_text, [tmp_path])
    assert "is outside the model's vocabulary of 24" in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.glob("checkpoints/metrics.parquet"))
