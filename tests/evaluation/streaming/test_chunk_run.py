import pytest
import torch
from support.streamed_models import Recurrent, make
from support.streaming import (
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
    strided_losses,
)

from needlework.evaluation.streaming import chunk_run
from needlework.evaluation.streaming.accumulator import Accumulator

pytestmark = pytest.mark.slow


class _LimitedMemory:
    """Makes a model run out of memory at random, or above a number of tokens."""

    def __init__(self, model, failure_rate, monkeypatch, max_tokens=None):
        self.draw = torch.Generator().manual_seed(8)
        self.failures = self.fail_until = 0
        self.failure_rate, self.max_tokens = failure_rate, max_tokens
        layer = [m for m in model.modules() if type(m).__name__.endswith("MLP")][-1]
        own = layer.forward

        def forward(x):
            tokens = x.shape[0] * x.shape[1]
            too_long = self.max_tokens is not None and tokens > self.max_tokens
            is_due = self.failures < self.fail_until
            if too_long or is_due or torch.rand((), generator=self.draw) < self.failure_rate:
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return own(x)

        monkeypatch.setattr(layer, "forward", forward)


@pytest.mark.parametrize("name", ["llama", "mistral", "infini", "falcon_h1", "qwen3_next"])
def test_out_of_memory_neither_skips_nor_repeats_tokens(name, monkeypatch):
    model, ids = make(name), random_ids(301)
    expected = one_pass_losses(model, ids)
    memory = _LimitedMemory(model, 0.2, monkeypatch)
    evaluator, accumulator = evaluator_of(model, 64), Accumulator()
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    assert memory.failures > 2
    assert accumulator["out_of_memory"].sum() > 0
    assert torch.cat([c.losses for c in chunks]).tolist() == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )
    assert [c.first_token for c in chunks] == [
        1 + sum(c.tokens for c in chunks[:i]) for i in range(len(chunks))
    ]
    assert evaluator.run.chunk_size < 64


def test_out_of_memory_reduces_the_number_of_windows_before_their_size(monkeypatch, caplog):
    model, ids = make("llama"), random_ids(301)
    _LimitedMemory(model, 0, monkeypatch, max_tokens=40)
    evaluator, accumulator = evaluator_of(model, 64, 32, window_batch_size=4), Accumulator()
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    assert (evaluator.run.chunk_size, evaluator.run.overlap, evaluator.run.window_batch_size) == (
        32,
        16,
        1,
    )
    assert "chunk 0: out of memory at token 1; continuing with 32 tokens" in caplog.text
    assert torch.cat([c.losses for c in chunks]).tolist() == pytest.approx(
        strided_losses(model, ids, 32, 16), rel=1e-5, abs=1e-5
    )
    # No token is lost where windows shrink in the middle of a text.
    memory = _LimitedMemory(model := make("llama"), 0, monkeypatch)
    position = 1
    for i, chunk in enumerate(evaluator_of(model, 64, 32).chunks(ids)):
        memory.max_tokens = 40 if i == 2 else memory.max_tokens
        assert chunk.first_token == position
        position += chunk.tokens
    assert position == 301


def test_a_reduced_chunk_grows_again(monkeypatch):
    model, ids = make("infini"), random_ids(2001)
    memory = _LimitedMemory(model, 0, monkeypatch)
    evaluator, sizes = evaluator_of(model, 32), []
    for i, chunk in enumerate(evaluator.chunks(ids)):
        sizes.append(chunk.tokens)
        memory.max_tokens = 16 if i == 0 else None
    assert sizes[:6] == [32, *[16] * 4, 32]
    assert max(sizes) == 32
    assert sum(sizes) == 2000


def test_the_equivalence_check_retries_when_memory_runs_out(monkeypatch):
    model, ids = make("llama"), random_ids(301)
    expected = one_pass_losses(model, ids)
    memory = _LimitedMemory(model, 0.25, monkeypatch)
    results = evaluate_with_losses(evaluator_of(model, 7), ids)
    # Only failed forwards, of nearly fifty, are repeated.
    assert memory.failures > 10
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_window_is_retried_before_it_is_reduced(monkeypatch):
    model, ids = make("llama"), random_ids(301)
    expected = strided_losses(model, ids, 64, 32)
    memory = _LimitedMemory(model, 0, monkeypatch)
    evaluator, accumulator = evaluator_of(model, 64, 32), Accumulator()
    losses = []
    for chunk in evaluator.chunks(ids, accumulator=accumulator):
        losses += chunk.losses.tolist()
        memory.fail_until = memory.failures + 2
    assert accumulator["out_of_memory"].tolist() == [0, *[2] * (len(accumulator) - 1)]
    assert set(accumulator["tokens_read"].tolist()[:-1]) == {63}
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_too_little_memory_is_an_error(monkeypatch):
    model = make("llama")
    memory = _LimitedMemory(model, 0, monkeypatch)
    chunks = evaluator_of(model, 64).chunks(random_ids(301))
    next(chunks)
    memory.max_tokens = 0
    message = r"^chunk 1: out of memory at token 65 with 1 tokens, and the chunk cannot be reduced"
    with pytest.raises(ValueError, match=message):
        next(chunks)
    with pytest.raises(ValueError, match=r"^out of memory with few tokens, before the first chunk"):
        evaluator_of(model, 64).evaluate_streaming(random_ids(301))


def test_adaptive_chunks_grow_to_the_limit_of_memory_and_text(monkeypatch):
    model, ids = make("infini"), random_ids(1001)
    memory = _LimitedMemory(model, 0, monkeypatch, max_tokens=300)
    monkeypatch.setattr(chunk_run, "can_double_memory", lambda baseline_bytes: True)
    results = evaluate_with_losses(evaluator_of(model, adaptive=True), ids)
    assert results["chunk_size"] == 256
    memory.max_tokens = None
    assert results["per_token_losses"].tolist() == pytest.approx(
        one_pass_losses(model, ids), rel=1e-5, abs=1e-5
    )
    assert evaluate_with_losses(evaluator_of(model, adaptive=True), ids)["chunk_size"] == 512
    evaluator = evaluator_of(model, 32, 16, adaptive=True)
    assert evaluate_with_losses(evaluator, ids)["mode"] == "strided"
    assert (evaluator.run.chunk_size, evaluator.run.window_batch_size) == (32, 16)


def test_non_finite_logits_are_reported_by_chunk_and_token():
    model, ids = Recurrent(), random_ids(200)
    ids[ids == 60] = 59
    ids[130] = 60
    with torch.no_grad():
        model.embed.weight[60] = torch.nan
    message = r"^chunk 2, document 0: the logits for token 131 are not finite"
    with pytest.raises(ValueError, match=message):
        evaluator_of(model, 50).evaluate_streaming(ids)
