"""Held-out text is read while a model is trained, and training goes as if it were not."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from support.killable import Pool, kill_when
from support.toy_training import finetuned, product
from torch.nn.functional import cross_entropy

from needlework.models.checkpoint import open_model
from needlework.training.checkpoints import Checkpoints

EVERY = 9
SHORT = {"steps": 20}


def tokens(folder: Path, top: int = 24) -> dict[str, str]:
    """90 tokens in a file, as `held_out.HeldOut` is made with."""
    folder.mkdir(exist_ok=True)
    ids = torch.randint(3, top, (90,), generator=torch.Generator().manual_seed(1))
    np.save(folder / "0.npy", ids.numpy().astype(np.uint32))
    np.save(folder / "0.starts.npy", np.array([0]))
    return {"tokens": str(folder / "0.npy"), "starts": str(folder / "0.starts.npy")}


def validated(folder: Path, top: int = 24, **changes) -> Checkpoints:
    made = {**tokens(folder, top), "most_tokens": 80, "reading": {"chunk_size": 16}}
    validation = ("needlework.evaluation.streaming.held_out:HeldOut", made)
    return finetuned(folder, validation=validation, validate_every=EVERY, **{**SHORT, **changes})


def test_the_loss_is_that_of_a_whole_reading_and_training_stays_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain, without = product(finetuned(tmp_path / "plain", **SHORT))
    found = validated(tmp_path / "validated")
    weights, metrics = product(found)
    assert weights == plain
    given = metrics.drop_nulls("validation_loss")
    assert given["step"].to_list() == [9, 18, 27, 29]
    # Rows of the same steps are the same, but that their losses are means since the row before.
    both = metrics.join(without, on="step", maintain_order="left")
    assert len(both) == len(without)
    assert both["gradient_norm"].equals(both["gradient_norm_right"])

    model, _ = open_model(found.product)
    ids = torch.from_numpy(np.load(tmp_path / "validated/0.npy").astype(np.int64))[:80]
    with torch.no_grad():
        # As a stream is read: segments are cut from its first token on.
        logits = model(ids[None], segment_offset=torch.zeros(1, dtype=torch.int64)).logits[0, :-1]
    expected = cross_entropy(logits, ids[1:]).item()
    assert given["validation_loss"][-1] == pytest.approx(expected, rel=1e-5)
    told = f"step 29: loss on held-out text {given['validation_loss'][-1]:.4f}"
    assert told in caplog.text
    assert "step 0: loss on held-out text" in caplog.text


def test_kill_9_changes_nothing(tmp_path, caplog):
    weights, metrics = product(validated(tmp_path / "undisturbed"))
    killed = tmp_path / "killed"
    for there in ("checkpoints/metrics.parquet", "checkpoints/*/step-*14"):
        kill_when(validated, killed, there)
    caplog.set_level(logging.INFO)
    again, metrics_again = product(validated(killed))
    assert " goes on from step " in caplog.text
    assert again == weights
    assert metrics_again.equals(metrics)


def wrong_text(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        validated(folder, top=40)
    return str(caught.value)


def test_a_text_of_another_tokenizer_is_told_before_the_first_step(tmp_path):
    with Pool(1) as elsewhere:
        said = elsewhere.apply(wrong_text, [tmp_path])
    assert "is not below the model's vocabulary of 24" in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.glob("checkpoints/metrics.parquet"))


@pytest.mark.workflow
def test_two_processes_validate_alike(tmp_path):
    whole = {"steps": 30, "batch_size": 4, "curriculum": [], "dropout": 0.0}
    alone = product(validated(tmp_path / "alone", **whole))[1]
    together = product(validated(tmp_path / "together", processes=2, **whole))[1]
    assert together["step"].to_list() == alone["step"].to_list()
    found = together["validation_loss"].drop_nulls().to_list()
    assert found == pytest.approx(alone["validation_loss"].drop_nulls().to_list(), rel=1e-4)
