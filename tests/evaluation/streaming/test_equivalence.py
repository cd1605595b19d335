import math

import numpy as np
import pytest
import torch
from support.streamed_models import make
from support.streaming import (
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
)
from torch.nn.functional import cross_entropy

from needlework.attention.apply import apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.config.attention.sketchwalk import SketchWalk

pytestmark = pytest.mark.slow

MODES = {
    "llama": "cache", "mistral": "state", "gemma2": "cache", "opt": "cache", "gpt2": "cache",
    "mamba2": "state", "qwen3_next": "cache", "falcon_h1": "cache", "infini": "state",
}  # fmt: skip


SPARSE = {
    "random": lambda folder: Random(block_size=16, top_k_blocks=3, dense_layers=1),
    "walk": lambda folder: SketchWalk(block_size=16, top_k_blocks=3, dense_layers=1),
    "seer": lambda folder: Seer(gates=str(folder), block_size=16, density=0.4, dense_last_rows=0),
    "dense decode": lambda folder: Random(block_size=16, top_k_blocks=1, stages="prefill"),
}


@pytest.mark.parametrize("name", MODES)
def test_losses_of_chunks_equal_those_of_one_pass(name):
    model, ids = make(name), random_ids(301)
    expected = one_pass_losses(model, ids)
    assert np.std(expected) > 0.3
    for chunk in (7, 128, None):
        results = evaluate_with_losses(evaluator_of(model, chunk), ids)
        assert results["mode"] == MODES[name]
        assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert results["loss"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert results["perplexity"] == pytest.approx(math.exp(np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("name", ["mistral", "infini", "mamba2"])
def test_carried_state_is_exact_over_thousands_of_tokens(name):
    model, ids = make(name), random_ids(2501)
    with torch.no_grad():
        expected = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    for chunk in (128, 1000):
        results = evaluate_with_losses(evaluator_of(model, chunk), ids)
        assert results["mode"] == "state"
        assert (results["per_token_losses"] - expected).abs().max() < 1e-5


def test_chunks_of_mamba2_differ_by_rounding_only(monkeypatch):
    # Its scan converts to float32 whatever the type of the weights.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model, ids = make("mamba2").double(), random_ids(301)
    results = evaluate_with_losses(evaluator_of(model, 7), ids)
    assert results["per_token_losses"].tolist() == pytest.approx(
        one_pass_losses(model, ids), abs=1e-12
    )


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2", "infini"])
def test_chunks_of_one_token_are_exact(name):
    model, ids = make(name), random_ids(90)
    results = evaluate_with_losses(evaluator_of(model, 1), ids)
    assert results["num_chunks"] == 89
    assert results["per_token_losses"].tolist() == pytest.approx(
        one_pass_losses(model, ids), rel=1e-5, abs=1e-5
    )


def test_block_sparse_systems_are_exact_in_whole_blocks():
    model, ids = make("llama"), random_ids(301)
    system = Random(block_size=16, top_k_blocks=3, dense_layers=1)
    with apply(model, system):
        expected = one_pass_losses(model, ids)
    results = evaluate_with_losses(evaluator_of(model, 48, attention=system), ids)
    assert results["mode"] == "cache"
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert evaluator_of(model, attention=system).plan.chunk_size == 4096
    walk = SketchWalk(block_size=16, top_k_blocks=3, dense_layers=1)
    with pytest.raises(ValueError, match=r"losses in chunks of 10 tokens differ .* set an overlap"):
        evaluate_with_losses(evaluator_of(model, 10, attention=walk), ids)


@pytest.mark.parametrize("kind", SPARSE)
def test_a_last_chunk_of_one_token_is_prefill(kind, tmp_path):
    model, ids = make("llama"), random_ids(6 * 48 + 2)
    torch.manual_seed(7)
    Gates.new(model, block_size=16).save(tmp_path)
    system = SPARSE[kind](tmp_path)
    # The model predicts the last token but does not read it, so no choice of blocks depends on it.
    read = ids[None, :-1]
    dense = model(read).logits[0]
    with apply(model, system), torch.no_grad():
        logits = model(read).logits[0]
    expected = cross_entropy(logits, ids[1:], reduction="none").tolist()
    assert (logits - dense)[-1].abs().max() > 1e-3
    results = evaluate_with_losses(evaluator_of(model, 48, attention=system), ids)
    assert results["mode"] == "cache"
    assert results["num_chunks"] == 7
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma"])
def test_models_that_are_not_exact_in_chunks_are_refused(name):
    model = make(name)
    message = r"losses in chunks of 8 tokens differ .* by \d.* at token \d+ of \d+; .* overlap"
    with pytest.raises(ValueError, match=message):
        evaluate_with_losses(evaluator_of(model, 8), random_ids(200))
    results = evaluate_with_losses(evaluator_of(model, 64, 32), random_ids(200))
    assert results["mode"] == "strided"
    # A text of one chunk carries no state.
    assert evaluate_with_losses(evaluator_of(model, 256), random_ids(200))["total_tokens"] == 199


def test_the_check_does_not_end_with_a_short_first_document():
    evaluator = evaluator_of(make("mamba"), 8, separate_documents=True)
    with pytest.raises(ValueError, match="losses in chunks of 8 tokens differ"):
        evaluator.evaluate_streaming([random_ids(6), random_ids(200)])
