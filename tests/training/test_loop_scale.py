"""Gradient accumulation, processes, bf16 and activation checkpointing keep the training step."""

import logging
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from support.killable import Process
from support.toy_training import ROWS, characters, finetuned, llama, product, recipe, validated

from needlework.config.attention.infini import Infini
from needlework.config.training import Pretrain, PretrainStage
from needlework.models.convert import convert
from needlework.training.checkpoints import Checkpoints
from needlework.training.finetune import finetune
from needlework.training.pretrain import pretrain

pytestmark = pytest.mark.slow

INFINI = Infini(segment_length=4, segment_alignment="end", update="delta")
WHOLE = {"steps": 30, "batch_size": 4, "curriculum": [], "dropout": 0.0}


def losses(**changes) -> list[float]:
    # Otherwise accelerate keeps the precision that the process used first.
    AcceleratorState._reset_state()
    model = convert(llama(), INFINI)
    config = recipe(steps=6, batch_size=4, **changes)
    return finetune(model, characters(), ROWS, config, seed=0)[0]["loss"].to_list()


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_gradient_accumulation_does_not_change_the_loss(parts):
    # Answers have 2, 2, 3 and 2 tokens: a mean of the parts' means would differ.
    assert losses(gradient_accumulation_steps=parts) == pytest.approx(losses(), rel=1e-5)


def test_gradient_accumulation_does_not_change_pretraining():
    def metrics_of(parts: int):
        stage = PretrainStage(length=128, rows=4, steps=5, exercises=["passkey", "noise", "recall"])
        config = Pretrain(stages=[stage], layers=1, log_every=1, gradient_accumulation_steps=parts)
        metrics = pretrain(config, 0)[2]
        return metrics.select("loss", "answer_loss", "text_loss", "gradient_norm").to_numpy()

    assert metrics_of(4) == pytest.approx(metrics_of(1), rel=1e-4)


def test_too_few_rows_for_the_parts_is_an_error():
    with pytest.raises(ValueError, match=r"a step has 4 rows, too few for 5 parts \(processes"):
        losses(gradient_accumulation_steps=5)


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(monkeypatch):
    computed, forward, exact = set(), torch.nn.Linear.forward, losses()

    def recording_forward(self, x):
        out = forward(self, x)
        computed.add(out.dtype)
        return out

    AcceleratorState._reset_state()
    model = convert(llama(), INFINI)
    monkeypatch.setattr(torch.nn.Linear, "forward", recording_forward)
    config = recipe(steps=6, batch_size=4, mixed_precision="bf16")
    in_bf16 = finetune(model, characters(), ROWS, config, seed=0)[0]["loss"].to_list()
    assert computed == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert in_bf16 != exact
    assert in_bf16 == pytest.approx(exact, rel=1e-2)


def test_gradient_checkpointing_recomputes_layers_without_changing_losses():
    model = convert(llama(), INFINI)
    calls = []
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    AcceleratorState._reset_state()
    config = recipe(steps=6, batch_size=4, gradient_checkpointing=True)
    recomputed = finetune(model, characters(), ROWS, config, seed=0)[0]["loss"].to_list()
    assert len(calls) == 2 * 6
    assert recomputed == losses()
    assert not model.is_activation_checkpointing


def two_processes(folder: Path) -> Checkpoints:
    return validated(
        folder, processes=2, gradient_accumulation_steps=2, checkpoint_every=4, **WHOLE
    )


@pytest.mark.workflow
def test_two_processes_match_one_and_end_with_their_job(tmp_path, caplog):
    _, alone = product(validated(tmp_path / "alone", **WHOLE))
    weights, together = product(two_processes(tmp_path / "together"))
    assert together.columns == alone.columns
    for name in alone.columns:
        # Losses on held-out text are of some steps only.
        assert together[name].is_null().equals(alone[name].is_null())
        values = [table[name].drop_nulls().to_list() for table in (together, alone)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert alone["validation_loss"].count() > 2

    killed = tmp_path / "killed"
    job = Process(target=two_processes, args=[killed])
    job.start()
    while not list(killed.glob("checkpoints/*/step-*8")):
        assert job.is_alive()
        time.sleep(0.01)
    started = psutil.Process(job.pid).children(recursive=True)
    assert len(started) >= 2
    job.kill()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    caplog.set_level(logging.INFO)
    again, metrics = product(two_processes(killed))
    assert "resuming from step" in caplog.text
    assert again == weights
    assert metrics.equals(together)


@pytest.mark.workflow
def test_error_in_one_of_several_processes_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^sequence_length: row 0 has 11 tokens .* the rows$"):
        finetuned(tmp_path, processes=2, **{**WHOLE, "sequence_length": 5})
