import pytest
from support.streamed_models import VOCABULARY, make
from support.streaming import (
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
    strided_losses,
)

from needlework.evaluation.streaming import token_losses


def test_logits_are_computed_in_slices(monkeypatch):
    model, ids = make("gemma2"), random_ids(201)
    seen = []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.numel()))
    monkeypatch.setitem(token_losses.MAX_LOGITS, "cpu", 10 * VOCABULARY)
    evaluator = evaluator_of(model, 200)
    results = evaluate_with_losses(evaluator, ids)
    assert max(seen) == 10 * VOCABULARY
    assert results["per_token_losses"].tolist() == pytest.approx(
        one_pass_losses(model, ids), rel=1e-5, abs=1e-5
    )
    assert model.model is model.base_model


def test_models_with_heads_on_a_part_of_the_base_model_are_exact(monkeypatch):
    monkeypatch.setitem(token_losses.MAX_LOGITS, "cpu", 10 * VOCABULARY)
    model, ids = make("opt"), random_ids(150)
    results = evaluate_with_losses(evaluator_of(model, 64, 32), ids)
    expected = strided_losses(model, ids, 64, 32)
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
