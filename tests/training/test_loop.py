import math
from itertools import pairwise

import polars as pl
import pytest
import torch

from needlework.training.loop import train, warmup_cosine


def _regression(seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        inputs = torch.randn(8, 3, generator=generator)
        yield {"input_ids": inputs, "target": inputs.sum(1, keepdim=True)}


def _squared_error(model, batch):
    return ((model(batch["input_ids"]) - batch["target"]) ** 2).mean()


def _train(model, *, steps=50, clip=1.0, **options):
    weight, bias = model.weight, model.bias
    return train(
        model,
        options.pop("batches", _regression(0)),
        steps=steps,
        groups=[
            {"params": [weight], "lr": 0.05, "weight_decay": 0.1},
            {"params": [bias], "lr": 0.2, "weight_decay": 0.0},
        ],
        schedule=lambda step: warmup_cosine(step, steps=steps, warmup=5, final=0.1),
        clip=clip,
        log_every=20,
        loss=_squared_error,
        **options,
    )


def _linear() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(3, 1)


def test_train_takes_the_steps_of_adamw_written_out():
    model, reference = _linear(), _linear()
    metrics, _ = _train(model, clip=0.5)

    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in reference.parameters()}
    losses, norms = [], []
    for step, batch in zip(range(50), _regression(0), strict=False):
        loss = _squared_error(reference, batch)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        losses.append(loss.item())
        norms.append(norm)
        if step < 5:
            factor = (step + 1) / 5
        else:
            factor = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 5) / 45)) / 2
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
                lr, decay = (0.05, 0.1) if parameter.dim() == 2 else (0.2, 0.0)
                gradient = gradient * min(1.0, 0.5 / norm)
                mean, square = moments[parameter]
                mean += 0.1 * (gradient - mean)
                square += 0.05 * (gradient**2 - square)
                parameter *= 1 - lr * factor * decay
                step_mean = mean / (1 - 0.9 ** (step + 1))
                step_square = square / (1 - 0.95 ** (step + 1))
                parameter -= lr * factor * step_mean / (step_square.sqrt() + 1e-8)

    torch.testing.assert_close(model.weight, reference.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.bias, reference.bias, atol=1e-5, rtol=1e-4)
    assert metrics["step"].to_list() == [1, 20, 40, 50]
    means = [losses[0], sum(losses[1:20]) / 19, sum(losses[20:40]) / 20, sum(losses[40:]) / 10]
    assert metrics["loss"].to_list() == pytest.approx(means, rel=1e-3)
    assert metrics["gradient_norm"][1] == pytest.approx(norms[19], rel=1e-2)
    assert metrics["learning_rate"][0] == pytest.approx(0.01)


def test_train_counts_tokens_and_watches():
    model = _linear()
    metrics, measurements = _train(model, steps=25, watch=lambda: {"gate": model.bias.item()})
    assert metrics["tokens"].to_list() == [24, 24 * 20, 24 * 25]
    assert metrics["gate"][-1] == pytest.approx(model.bias.item())
    assert measurements.columns == ["step", "seconds", "tokens_per_second"]
    assert measurements["seconds"].is_sorted()
    assert not model.training


def test_same_batches_give_the_same_metrics():
    first, second = (_train(_linear())[0] for _ in range(2))
    assert isinstance(first, pl.DataFrame)
    assert first.equals(second)


def test_train_says_when_the_data_ended_or_the_loss_is_lost():
    batch = next(_regression(0))
    with pytest.raises(ValueError, match="ended after 3 of 50 steps"):
        _train(_linear(), batches=[batch] * 3)
    lost = {**batch, "target": batch["target"] * math.inf}
    with pytest.raises(ValueError, match="by step 1: lower the learning rate"):
        _train(_linear(), batches=[lost])


def test_warmup_cosine_rises_stays_and_falls():
    factors = [
        warmup_cosine(step, steps=100, warmup=10, flat=0.5, final=0.2) for step in range(100)
    ]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:51] == [1.0] * 41
    assert factors[75] == pytest.approx(0.6)
    assert all(a > b for a, b in pairwise(factors[50:]))
    assert factors[-1] == pytest.approx(0.2, abs=0.001)
