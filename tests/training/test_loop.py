import math
from itertools import pairwise

import polars as pl
import pytest
import torch

from needlework.config.training import ModelTraining
from needlework.training.loop import train, warmup_cosine


def _regression(seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        inputs = torch.randn(8, 3, generator=generator)
        yield {"input_ids": inputs, "target": inputs.sum(1, keepdim=True)}


def _squared_error(model, part, batch):
    return ((model(part["input_ids"]) - part["target"]) ** 2).sum() / len(batch["target"])


def _train(model, *, steps=50, options=None, **changes):
    weight, bias = model.weight, model.bias
    return train(
        model,
        changes.pop("batches", _regression(0)),
        ModelTraining(**{"log_every": 20, **(options or {})}),
        steps=steps,
        groups=[
            {"params": [weight], "lr": 0.05, "weight_decay": 0.1},
            {"params": [bias], "lr": 0.2, "weight_decay": 0.0},
        ],
        schedule=lambda step: warmup_cosine(step, steps=steps, warmup=5, final=0.1),
        loss=_squared_error,
        **changes,
    )


def _linear() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(3, 1)


def test_steps_match_adamw_written_out():
    model, reference = _linear(), _linear()
    metrics, _ = _train(model, options={"max_grad_norm": 0.5})

    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in reference.parameters()}
    losses, norms = [], []
    for step, batch in zip(range(50), _regression(0), strict=False):
        loss = _squared_error(reference, batch, batch)
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


def test_metrics_hold_token_counts_and_extra_columns():
    model = _linear()
    metrics, measurements = _train(
        model, steps=25, extra_metrics=lambda: {"gate": model.bias.item()}
    )
    assert metrics["tokens"].to_list() == [24, 24 * 20, 24 * 25]
    assert metrics["gate"][-1] == pytest.approx(model.bias.item())
    assert measurements.columns == ["step", "seconds", "tokens_per_second", "peak_memory_bytes"]
    assert measurements["peak_memory_bytes"].min() > 2**20
    assert measurements["seconds"].is_sorted()
    assert not model.training


def test_validation_adds_rows_and_is_null_in_others():
    model, seen = _linear(), []

    def validate(validated):
        assert validated is model
        seen.append(validated.bias.item())
        return seen[-1]

    options = {"log_every": 1, "validate_every": 120}
    metrics, _ = _train(model, steps=125, options=options, validate=validate)
    assert metrics["step"].to_list() == list(range(1, 126))
    validated = metrics.drop_nulls("validation_loss")
    assert validated["step"].to_list() == [120, 125]
    # The first call came before the first step and has no row.
    assert validated["validation_loss"].to_list() == seen[1:]
    metrics, _ = _train(_linear(), steps=45, options={"validate_every": 30}, validate=lambda _: 1.0)
    assert metrics["step"].to_list() == [1, 20, 30, 40, 45]


def test_training_is_deterministic():
    first, second = (_train(_linear())[0] for _ in range(2))
    assert isinstance(first, pl.DataFrame)
    assert first.equals(second)


def test_missing_data_and_infinite_loss_are_errors():
    batch = next(_regression(0))
    with pytest.raises(ValueError, match="ended after 3 of 50 steps"):
        _train(_linear(), batches=[batch] * 3)
    infinite = {**batch, "target": batch["target"] * math.inf}
    with pytest.raises(ValueError, match="step 1: loss inf, gradient norm"):
        _train(_linear(), batches=[infinite])


def test_non_finite_loss_names_its_rows():
    def batches():
        for step, batch in enumerate(_regression(0)):
            batch = {**batch, "row": torch.arange(8) + 100}
            batch["target"][6] *= math.nan if step == 3 else 1.0
            yield batch

    model = _linear()
    with pytest.raises(ValueError, match=r"^step 4: loss nan, .* on rows 106, 107 of the da"):
        _train(model, batches=batches(), options={"gradient_accumulation_steps": 4})
    assert model.weight.isfinite().all()


def test_warmup_cosine_rises_stays_constant_and_decays():
    factors = [
        warmup_cosine(step, steps=100, warmup=10, stable_fraction=0.5, final=0.2)
        for step in range(100)
    ]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:51] == [1.0] * 41
    assert factors[75] == pytest.approx(0.6)
    assert all(a > b for a, b in pairwise(factors[50:]))
    assert factors[-1] == pytest.approx(0.2, abs=0.001)
