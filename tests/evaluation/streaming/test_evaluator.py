import math

import numpy as np
import pytest
import torch
from support.streamed_models import make
from support.streaming import (
    WINDOW,
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
)

import needlework
from needlework.evaluation import (
    StreamingEvalConfig,
    StreamingEvaluator,
    create_streaming_evaluator,
)
from needlework.evaluation.streaming.accumulator import Accumulator


def test_losses_are_weighted_by_tokens():
    model, ids = make("llama"), random_ids(111)
    results = evaluator_of(model, 50).evaluate_streaming_with_metrics(ids)
    expected = one_pass_losses(model, ids)
    parts = [expected[:50], expected[50:100], expected[100:]]
    means = [np.mean(part) for part in parts]
    assert results["chunk_losses"] == pytest.approx(means, abs=1e-5)
    assert results["chunk_perplexities"] == pytest.approx(np.exp(means), rel=1e-5)
    assert results["avg_chunk_loss"] == pytest.approx(np.mean(means), abs=1e-5)
    assert results["std_chunk_loss"] == pytest.approx(np.std(means), abs=1e-5)
    assert results["loss"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert abs(results["loss"] - np.mean(means)) > 1e-3
    assert results["per_token_losses"] is None
    assert len(results["chunk_times"]) == results["num_chunks"] == 3
    assert results["avg_chunk_time"] == pytest.approx(np.mean(results["chunk_times"]))
    assert results["tokens_per_second"] == pytest.approx(110 / results["total_time"])


def test_max_tokens_and_config():
    model, ids = make("llama"), random_ids(111)
    for max_tokens, scored in ((None, 110), (0, 0), (1, 0), (2, 1), (60, 59), (500, 110)):
        results = evaluator_of(model, 50).evaluate_streaming(ids, max_tokens=max_tokens)
        assert results["total_tokens"] == scored
        assert math.isnan(results["perplexity"]) == (scored == 0)
        assert results["mode"] == "cache"
    config = StreamingEvalConfig(chunk_size=40, max_tokens=60, device="cpu", verbose=False)
    results = create_streaming_evaluator(model, config).evaluate_streaming(ids)
    assert (results["total_tokens"], results["num_chunks"]) == (59, 2)
    default = create_streaming_evaluator(model)
    assert (default.plan.chunk_size, default.plan.overlap) == (8192, 0)
    with pytest.raises(ValueError, match=r"^max_tokens -1: write an integer of at least 0"):
        evaluator_of(model, 50).evaluate_streaming(ids, max_tokens=-1)


def test_documents_are_joined_or_separate():
    model = make("infini")
    parts = [random_ids(50, 1), random_ids(1, 2), random_ids(80, 3)]
    joined = evaluate_with_losses(evaluator_of(model, 20), parts)
    assert joined["per_token_losses"].tolist() == pytest.approx(
        one_pass_losses(model, torch.cat(parts)), rel=1e-5, abs=1e-5
    )
    evaluator, accumulator = evaluator_of(model, 20, separate_documents=True), Accumulator()
    losses = torch.cat([chunk.losses for chunk in evaluator.chunks(parts, accumulator=accumulator)])
    expected = one_pass_losses(model, parts[0]) + one_pass_losses(model, parts[2])
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert set(accumulator["document"].tolist()) == {0, 2}
    limited = evaluate_with_losses(evaluator_of(model, 20, separate_documents=True), parts, 70)
    assert limited["total_tokens"] == 49 + 0 + 18
    rows = torch.stack([random_ids(40, 1), random_ids(40, 2)])
    assert (
        evaluate_with_losses(evaluator_of(model, 20, separate_documents=True), rows)["total_tokens"]
        == 78
    )


def test_the_model_is_restored():
    model = make("llama").train()
    evaluator_of(model, 50, attention=WINDOW).evaluate_streaming(random_ids(120))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    ids = random_ids(60)
    model(ids[None]).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_public_names():
    assert needlework.StreamingEvaluator is StreamingEvaluator
    assert needlework.StreamingEvalConfig is StreamingEvalConfig
    assert needlework.create_streaming_evaluator is create_streaming_evaluator
    assert needlework.evaluation.StreamingEvaluator is StreamingEvaluator
